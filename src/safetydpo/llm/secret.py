"""The server's key, kept out of what is shown and kept."""

import html
import json
from itertools import groupby
from operator import itemgetter
from urllib.parse import quote

# So many characters of a key in a row are hidden in messages; in answers, which may have its words, twice as many.
PIECE = 8


class Secret:
    """A key as texts may have it: as it is, in a URL, in JSON, in HTML."""

    def __init__(self, key: str = "") -> None:
        self.key, quoted = key, quote(key, safe="")
        self.forms = {key, quoted, quoted.lower(), json.dumps(key)[1:-1], html.escape(key)} - {""}

    def out_of(self, text: str, piece: int = PIECE) -> str:
        """A text without the key, and without every part of it that has `piece` characters or more."""
        hidden = bytearray(len(text))
        for form in self.forms:
            size = min(piece, len(form))
            half = (size + 1) // 2  # a part of `size` characters has one of these blocks whole
            if any(form[i : i + half] in text for i in range(0, len(form) - half + 1, half)):
                parts = {form[i : i + size] for i in range(len(form) - size + 1)}
                for i in range(len(text) - size + 1):
                    if text[i : i + size] in parts:
                        hidden[i : i + size] = b"\1" * size
        if not any(hidden):
            return text
        runs = groupby(zip(text, hidden, strict=True), key=itemgetter(1))
        return "".join("***" if secret else "".join(c for c, _ in run) for secret, run in runs)

    def out_of_answer(self, text: str) -> str:
        """The same for what becomes data: a dummy such as `none` is no secret, and a word of prompts."""
        return self.out_of(text, 2 * PIECE) if len(self.key) >= PIECE else text
