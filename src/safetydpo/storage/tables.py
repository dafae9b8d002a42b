"""Tables as people have them: csv, JSON and Parquet files that no stage wrote."""

import csv
import io
import re
import sys
from collections.abc import Callable, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import types

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.json_rows import Row, json_rows, names_of

SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
# How files begin that are no csv, or none in UTF-8.
ENCODINGS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
OTHERS = {b"PK\3\4": "a zip or Excel file", b"\x1f\x8b": "a gzip file"}
PARQUET, JSON_BEGINS = b"PAR1", re.compile(r"\s*[\[{]")
JSON_LINES = (".jsonl", ".ndjson")
JSON_FILES = (".json", *JSON_LINES)
# Below which a float is the integer that it was made of; 2^53 for doubles.
EXACT = {pa.float16(): 2**11, pa.float32(): 2**24}


def read_rows(
    path: Path | str, needs: Sequence[str], takes: Sequence[str] = (), lists: Sequence[str] = ()
) -> pd.DataFrame:
    """Columns of a csv (RFC 4180, or with another separator), JSON or Parquet, as text, empty where a value is missing.

    needs: columns that must be there; takes: those taken where they are. Others may hold anything; a name is found
    whatever its case and the spaces around it. lists: columns whose cells may be lists of texts, which "|" joins. JSON
    is a list of objects, an object of lists, or an object a line.
    Raises SafetyDPOError for a file that is missing, damaged, of another kind or encoding, without a column that it
    needs, with two of a name, or with one that holds no text.
    """
    path = Path(path)
    return _read(
        path,
        lambda: _parquet(path, needs, takes, lists),
        lambda text: _json(path, text, needs, takes, lists),
        lambda text: _csv(path, text, needs, takes),
    )


def heads_of(path: Path | str, known: Sequence[str]) -> list[list[str]]:
    """Names of a file's columns; of a csv, what they are by each separator that people use.

    known: names that may be asked for, by which JSON shows its form. Raises SafetyDPOError as read_rows does.
    """
    path = Path(path)
    heads = _read(
        path,
        lambda: [pq.read_schema(path).names],
        lambda text: [names_of(_json_rows(path, text, known))],
        lambda text: list(_heads(text).values()),
    )
    return [[name.strip() for name in head] for head in heads]


def _read(
    path: Path, of_parquet: Callable[[], Any], of_json: Callable[[str], Any], of_csv: Callable[[str], Any]
) -> Any:
    """What the reader of the file's kind makes of it; those of JSON and csv are given its text."""
    if not path.is_file():
        fault = "is a folder" if path.is_dir() else "does not exist"
        raise SafetyDPOError(f"{path} {fault}: put the file there or change the path in the config.")
    kind, todo = "JSON file" if path.suffix.lower() in JSON_FILES else "csv", ""
    try:
        with path.open("rb") as file:
            begins = file.read(len(PARQUET)) == PARQUET
        if begins or path.suffix.lower() in (".parquet", ".parq", ".pq"):
            kind, todo = "Parquet file", ": replace it by a whole one"
            return of_parquet()
        text = _decoded(path.read_bytes())
        if kind == "csv" and not JSON_BEGINS.match(text):
            return of_csv(text)
        kind = "JSON file"
        return of_json(text)
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        reason = str(error).split("\n")[0]
        raise SafetyDPOError(f"{path} is not a readable {kind} ({reason}){todo}.") from None


def whole_seed(value: str, where: str) -> int | None:
    """A file's seed, None where it is blank; SafetyDPOError, with `where` it is, unless it is whole and below 2^63."""
    if not value.strip():
        return None
    whole = re.fullmatch(r"([0-9]+)(\.0*)?", value.strip())
    if not whole or int(whole[1]) >= 2**63:
        raise SafetyDPOError(f"{where} has the seed {value!r}: it must be a whole number from 0 to 2^63 - 1, or blank.")
    return int(whole[1])


def _places(path: Path, head: list[str], needs: Sequence[str], takes: Sequence[str]) -> dict[str, int]:
    """Where in the file's head each wanted column stands."""
    found = {name: _named(head, name) for name in (*needs, *takes)}
    for name, places in found.items():
        if name in needs and not places:
            all_needed = f"needs {', '.join(needs)} and " if len(needs) > 1 else ""
            raise SafetyDPOError(f"{path} has no column `{name}`; it {all_needed}has {', '.join(head)[:500]}.")
        if len(places) > 1:
            raise SafetyDPOError(f"{path} has {len(places)} columns `{name}`: rename or remove all but one.")
    return {name: places[0] for name, places in found.items() if places}


def _named(head: list[str], name: str) -> list[int]:
    """Where columns of that name stand; in any case of letters, where none has it exactly."""
    names = [other.strip() for other in head]
    exact = [i for i, other in enumerate(names) if other == name]
    return exact or [i for i, other in enumerate(names) if other.casefold() == name.casefold()]


def _parquet(path: Path, needs: Sequence[str], takes: Sequence[str], lists: Sequence[str]) -> pd.DataFrame:
    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        schema = file.schema_arrow
        fields = {name: schema.field(i) for name, i in _places(path, schema.names, needs, takes).items()}
        for name, field in fields.items():
            if types.is_nested(field.type) and not (name in lists and _is_list_of_texts(field.type)):
                raise SafetyDPOError(f"{path}: its column `{name}` holds {field.type}, not text: rename or replace it.")
        table = file.read([field.name for field in fields.values()])
    return pd.DataFrame(
        {name: _texts(table.column(field.name), f"column `{name}`") for name, field in fields.items()}, dtype=str
    )


def _is_list_of_texts(kind: pa.DataType) -> bool:
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return is_list and (types.is_string(kind.value_type) or types.is_large_string(kind.value_type))


def _texts(column: Any, where: str) -> list[str]:
    """A column (ChunkedArray) as texts; numbers keep all their digits, 7.0 is 7."""
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_string(column.type) or types.is_large_string(column.type):
        column = column.cast(pa.large_binary())  # Arrow does not look whether it is UTF-8
    exact = EXACT.get(column.type, 2**53)
    return [_text(value, exact, f"{where}, row {i}") for i, value in enumerate(column.to_pylist(), 1)]


def _text(value: Any, exact: int, where: str) -> str:
    """One value as text. Floats that are whole (pandas makes them of integers where one is missing) are written as
    integers below `exact`; above it they have lost digits, which their text shows.
    """
    if value is None or value != value:
        return ""
    if isinstance(value, list):
        return "|".join(_text(part, exact, where) for part in value)
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{where}: its bytes are no text in UTF-8") from None
    if isinstance(value, float) and value.is_integer():
        return str(int(value)) if abs(value) < exact else f"{value:e}"
    return str(value)


def _json(path: Path, text: str, needs: Sequence[str], takes: Sequence[str], lists: Sequence[str]) -> pd.DataFrame:
    rows = _json_rows(path, text, (*needs, *takes))
    head = names_of(rows)
    columns = {}
    for name, place in _places(path, head, needs, takes).items():
        cells = (row.get(head[place]) for row in rows)
        columns[name] = [_json_text(cell, path, name, i, name in lists) for i, cell in enumerate(cells, 1)]
    return pd.DataFrame(columns, dtype=str)


def _json_rows(path: Path, text: str, names: Sequence[str]) -> list[Row]:
    asked = {name.casefold() for name in names}
    return json_rows(text, path.suffix.lower() in JSON_LINES, lambda name: name.strip().casefold() in asked)


def _json_text(value: Any, path: Path, name: str, row: int, may_be_list: bool) -> str:
    """One value as text; a number as it is written."""
    if value is None:
        return ""
    if isinstance(value, list) and may_be_list and all(type(part) is str for part in value):
        value = "|".join(value)
    if isinstance(value, (list, dict)):
        kind = "a list" if isinstance(value, list) else "an object"
        raise SafetyDPOError(f"{path}: its column `{name}` holds {kind} in row {row}, not text: rename or replace it.")
    try:
        str(value).encode()
    except UnicodeEncodeError:
        raise ValueError(f"column `{name}`, row {row}: it has half of a character, no text in UTF-8") from None
    return str(value)


def _csv(path: Path, text: str, needs: Sequence[str], takes: Sequence[str]) -> pd.DataFrame:
    csv.field_size_limit(sys.maxsize)  # a column that nobody asks for may be long
    heads = _heads(text)
    separator = next((s for s, head in heads.items() if all(_named(head, name) for name in needs)), ",")
    head = heads[separator]
    places = _places(path, head, needs, takes)
    spaced = head != _head(text, separator, spaced=False)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=spaced)
    rows = []
    try:
        lines = dropwhile(_blank, reader)
        next(lines)
        for row in lines:
            if len(row) == len(head):
                rows.append([row[i] for i in places.values()])
            elif not _blank(row):
                counts = f"line {reader.line_num} has {len(row)} fields, the first has {len(head)}"
                raise ValueError(f"{counts}: a text with a {SEPARATORS[separator]} needs quotes")
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from None
    return pd.DataFrame(rows, columns=pd.Index(places), dtype=str)


def _heads(text: str) -> dict[str, list[str]]:
    """What the first line is by each separator."""
    heads = {separator: _head(text, separator) for separator in SEPARATORS}
    if not heads[","]:
        raise ValueError("it is empty")
    return heads


def _head(text: str, separator: str, spaced: bool = True) -> list[str]:
    """The first line that is not blank; spaced: without spaces after separators, which then quotes may follow."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=spaced)
    return next(dropwhile(_blank, reader), [])


def _blank(row: list[str]) -> bool:
    return not any(field.strip() for field in row)


def _decoded(data: bytes) -> str:
    """A file's text: UTF-8, or what its first bytes say."""
    for begin, kind in OTHERS.items():
        if data.startswith(begin):
            raise ValueError(f"it is {kind}: save it as csv in UTF-8, JSON or Parquet")
    encoding = next((name for begin, name in ENCODINGS.items() if data.startswith(begin)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        reason = (
            f"line {line} is not UTF-8, but cp1252 perhaps"
            if encoding == "utf-8-sig"
            else f"it is not whole {encoding}"
        )
        raise ValueError(f"{reason}: save it as UTF-8") from None
    if "\0" in text:
        raise ValueError("it is no text in UTF-8, but UTF-16 perhaps: save it as UTF-8")
    return text
