"""Progress bars: one that redraws itself on a terminal, one line a minute in a log file."""

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

# Seconds between lines of a log.
EVERY = 60


class _Lines:
    """A text stream for tqdm on which every redraw of the bar is a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        text = text.strip("\r\n ")
        if text:
            self.stream.write(text + "\n")

    def flush(self) -> None:
        self.stream.flush()


def progress(items: Iterable[Any] | None, name: str, **options: Any) -> Any:
    """tqdm over `items` (None: moved by hand), with the time left; `options` are tqdm's."""
    if sys.stderr.isatty():
        return tqdm(items, name, mininterval=1, **options)
    return tqdm(items, name, file=_Lines(sys.stderr), mininterval=EVERY, maxinterval=EVERY, ncols=100, **options)
