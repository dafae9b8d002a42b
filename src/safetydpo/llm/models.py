"""Names of models, as a config, a server's list and its answers write them."""

import re
from typing import Any

# What may follow a model's name: Ollama's tag, a date or number of a snapshot, `-latest`.
_VERSION = re.compile(r":[\w.-]+|[-@](latest|\d{4}-\d{2}-\d{2}|\d{3,8})")


def same_model(name: str, other: str) -> bool:
    """Whether two names mean one model: a path or its last part, a snapshot or what it is one of."""
    short, long = sorted((_bare(name), _bare(other)), key=len)
    return long.startswith(short) and (long == short or bool(_VERSION.fullmatch(long[len(short) :])))


def _bare(name: str) -> str:
    return name.strip().casefold().replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].removesuffix(".gguf")


def names_in(listed: Any) -> list[str]:
    """The names in what a server answers to /models; none where it lists none."""
    rows = listed
    if isinstance(listed, dict):
        rows = listed.get("data") or listed.get("models")
    rows = rows if isinstance(rows, list) else []
    names = [row.get("id") or row.get("name") if isinstance(row, dict) else row for row in rows]
    return [name for name in names if isinstance(name, str) and name]
