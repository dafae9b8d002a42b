"""Rows of JSON as people have them: a list of objects, an object of lists, or an object a line."""

import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any

Row = dict[str, Any]
SOMETHING = re.compile(r"\S")


class Number(str):
    """A number as it is written, with all its digits."""


def json_rows(text: str, lines: bool, wanted: Callable[[str], bool]) -> list[Row]:
    """Rows by column name: texts, `Number`s, booleans, lists, objects, None where a value is missing.

    lines: an object a line, which is seen too where the first line is one. Columns that are not `wanted` are None: what
    nobody asks for may be large. Raises ValueError for what is no JSON, or no table.
    """
    decoder = json.JSONDecoder(
        object_pairs_hook=lambda pairs: _object(pairs, wanted),
        parse_int=Number,
        parse_float=Number,
        parse_constant=lambda name: None if name == "NaN" else Number(name),
    )
    if not SOMETHING.search(text):
        raise ValueError("it is empty")
    try:
        if lines or _first_line_is_whole(text):
            rows = list(_by_line(text, decoder))
        else:
            rows = _table(decoder.decode(text), wanted)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not rows:
        raise ValueError("it has no rows")
    return rows


def names_of(rows: list[Row]) -> list[str]:
    """Names of all columns, in the order in which rows have them."""
    return list(dict.fromkeys(chain.from_iterable(rows)))


def _object(pairs: list[tuple[str, Any]], wanted: Callable[[str], bool]) -> Row:
    found = {name: value if wanted(name) or _holds_rows(value) else None for name, value in pairs}
    if len(found) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"an object has `{twice}` twice")
    return found


def _holds_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _first_line_is_whole(text: str) -> bool:
    """Whether there are more lines after a first one that is an object by itself."""
    begin = SOMETHING.search(text)
    end = text.find("\n", begin.start() if begin else 0)
    try:
        return end >= 0 and SOMETHING.search(text, end) is not None and isinstance(json.loads(text[:end]), dict)
    except ValueError:
        return False


def _by_line(text: str, decoder: json.JSONDecoder) -> Iterator[Row]:
    for number, line in enumerate(io.StringIO(text, newline="\n"), 1):
        if not line.strip():
            continue
        try:
            row = decoder.decode(line)
        except ValueError as error:
            raise ValueError(f"line {number}: {getattr(error, 'msg', error)}") from None
        if not isinstance(row, dict):
            raise ValueError(f"line {number} is no object")
        yield row


def _table(value: Any, wanted: Callable[[str], bool]) -> list[Row]:
    """Rows of a whole document: a list of objects, an object of lists, one with a list of objects, or a row alone."""
    if isinstance(value, list):
        if (number := next((i for i, row in enumerate(value, 1) if not isinstance(row, dict)), None)) is not None:
            raise ValueError(f"row {number} is no object")
        return value
    if not isinstance(value, dict):
        raise ValueError("it is neither a list of objects nor an object of lists")
    columns = {name: cells for name, cells in value.items() if wanted(name) and not _holds_rows(cells)}
    if columns and all(isinstance(cells, list) for cells in columns.values()):
        if len({len(cells) for cells in columns.values()}) > 1:
            raise ValueError(f"its lists {', '.join(columns)} are not of one length")
        rows = zip(*columns.values(), strict=True)
        return [dict.fromkeys(value) | dict(zip(columns, cells, strict=True)) for cells in rows]
    tables = [name for name, cells in value.items() if _holds_rows(cells)]
    if columns or not tables:
        return [value]
    if len(tables) > 1 and "data" not in tables:
        raise ValueError(f"it has several tables ({', '.join(tables)}): put one of them into a file of its own")
    return _table(value["data" if "data" in tables else tables[0]], wanted)
