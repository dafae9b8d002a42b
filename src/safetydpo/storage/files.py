"""Reading and writing stage files: a file that has its final name is whole, and says what made it."""

import csv
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from safetydpo.config.versions import STAGE_VERSION
from safetydpo.errors import SafetyDPOError

if TYPE_CHECKING:
    import torch

LIBRARIES = ("safetydpo", "torch", "diffusers", "peft", "transformers")


def made_by(stage: str, **facts: Any) -> dict[str, str]:
    """Header of a stage's file: stage, its version, config slice, seed, model, library versions."""
    libraries = {name: version(name) for name in LIBRARIES}
    return {"safetydpo": json.dumps({"stage": stage, "version": STAGE_VERSION[stage], "libraries": libraries, **facts})}


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well and removed when it does not."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{path.name}.*.tmp"):  # of a killed job
            stale.unlink(missing_ok=True)
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())  # or a power cut may leave the new name without the contents
        os.replace(temporary, path)
    except (OSError, pa.ArrowException, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SafetyDPOError(
            f"Cannot write {path}: {reason}. Free space or make the folder writable, then rerun."
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_text(text: str, path: Path | str) -> None:
    """Write a text file whole."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_parquet(
    rows: pd.DataFrame | list[dict[str, Any]], path: Path | str, header: dict[str, str] | None = None
) -> None:
    """Write a table whole."""
    many = isinstance(rows, pd.DataFrame)
    table: Any = pa.Table.from_pandas(rows, preserve_index=False) if many else pa.Table.from_pylist(rows)
    with whole_file(path) as temporary:
        metadata = (table.schema.metadata or {}) | _encoded(header or {})
        pq.write_table(table.replace_schema_metadata(metadata), temporary, compression="zstd")


def write_batches(tables: Iterable[pa.Table], path: Path | str, header: dict[str, str]) -> int:
    """Write tables of one schema as they come, a row group each, none of them kept; returns the number of rows."""
    count, writer = 0, None
    with whole_file(path) as temporary, ExitStack() as closing:
        for table in tables:
            if writer is None:
                schema = table.schema.with_metadata(_encoded(header) | (table.schema.metadata or {}))
                writer = closing.enter_context(pq.ParquetWriter(temporary, schema, compression="zstd"))
            writer.write_table(table.cast(writer.schema))
            count += len(table)
            del table  # before the next one is made
        if writer is None:
            raise SafetyDPOError(f"{path}: nothing to write.")
        closing.close()  # the file must be whole before it gets its name
    return count


def _encoded(header: dict[str, str]) -> dict[bytes, bytes]:
    return {key.encode(): value.encode() for key, value in header.items()}


def rows_in(paths: Sequence[Path | str]) -> int:
    """Rows of several tables together, by their footers."""
    count = 0
    for path in paths:
        with _readable(path):
            count += pq.read_metadata(path).num_rows
    return count


def read_batches(paths: Sequence[Path | str], size: int) -> Iterator[pd.DataFrame]:
    """The rows of several tables, `size` at a time; SafetyDPOError as read_parquet."""
    for path in paths:
        with _readable(path), pq.ParquetFile(path) as file:
            for batch in file.iter_batches(size):
                yield batch.to_pandas()


@contextmanager
def _readable(path: Path | str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise SafetyDPOError(f"{path} is missing: rerun snakemake, it will make it.") from None
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise SafetyDPOError(f"{path} is not a whole Parquet file ({reason}): delete it and rerun snakemake.") from None


def columns_of(path: Path | str) -> list[str]:
    """Names of a table's columns; SafetyDPOError as read_parquet."""
    with _readable(path):
        return list(pq.read_schema(path).names)


def read_parquet(path: Path | str, columns: list[str] | None = None) -> pd.DataFrame:
    """Read a table; SafetyDPOError when it is missing, damaged or lacks a column."""
    if missing := set(columns or ()) - set(columns_of(path)):
        raise SafetyDPOError(f"{path} has no column {min(missing)}.")
    with _readable(path):
        return pq.read_table(path, columns=columns).to_pandas()


def read_rows(path: Path | str) -> pd.DataFrame:
    """A csv (RFC 4180) or Parquet as text columns, empty where a value is missing."""
    path = Path(path)
    if not path.is_file():
        raise SafetyDPOError(f"{path} does not exist: put the file there or change the path in the config.")
    if path.suffix == ".parquet":
        rows = read_parquet(path)
        return pd.DataFrame({name: ["" if pd.isna(v) else str(v) for v in rows[name]] for name in rows})
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return _csv(file)
    except (ValueError, csv.Error) as error:
        raise SafetyDPOError(f"{path} is not a readable csv ({error}).") from None


def _csv(file: TextIO) -> pd.DataFrame:
    reader = csv.reader(file, strict=True)
    head, rows = next(reader, None), []
    if not head:
        raise ValueError("it is empty")
    for row in reader:
        if row and len(row) != len(head):
            counts = f"line {reader.line_num} has {len(row)} fields, the first has {len(head)}"
            raise ValueError(f"{counts}: a text with a comma needs quotes")
        if row:
            rows.append(row)
    return pd.DataFrame(rows, columns=pd.Index(head), dtype=str)


def write_safetensors(tensors: "dict[str, torch.Tensor]", path: Path | str, header: dict[str, str]) -> None:
    """Write tensors whole."""
    from safetensors.torch import save_file

    with whole_file(path) as temporary:
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, header)


def read_safetensors(path: Path | str) -> "tuple[dict[str, torch.Tensor], dict[str, str]]":
    """Tensors and header of a safetensors file; SafetyDPOError when it is missing or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError:
        raise SafetyDPOError(f"{path} is missing: rerun snakemake, it will make it.") from None
    except (SafetensorError, OSError) as error:
        raise SafetyDPOError(
            f"{path} is not a whole safetensors file ({error}): delete it and rerun snakemake."
        ) from None
