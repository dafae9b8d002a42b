"""Where prompt pairs can come from. Adding a source is an entry here and a function that makes its table.

Free of pandas and openai: config and rules read it too.
"""

from typing import NamedTuple


class Source(NamedTuple):
    """A source: its function (file:name in this room), request -> table with `request.COLUMNS`, and what it is like."""

    pairs: str
    needs_path: bool = False  # prompts.path, the file or folder to read
    written: bool = False  # by a language model: concepts come before pairs, faults are asked again
    brings_images: bool = False  # with columns unsafe_file and safe_file; it has no safe prompts
    own_sets: bool = False  # it has retain and tuning prompts too, which others need files for


SOURCES = {
    "demo": Source("demo:pairs", own_sets=True),
    "openai": Source("llm:pairs", written=True),
    "coprov2": Source("readers:coprov2", needs_path=True),
    "pairs": Source("readers:pairs", needs_path=True),
    "folder": Source("readers:folder", needs_path=True, brings_images=True),
}
