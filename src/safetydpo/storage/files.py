"""Reading and writing stage files: a file that has its final name is whole, says what made it, and is read as it was
written.

A file that is not `own` is a user's: it is never called ours to delete.
"""

import glob
import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from safetydpo.config.versions import STAGE_VERSION
from safetydpo.errors import SafetyDPOError
from safetydpo.storage.finite import finite

if TYPE_CHECKING:
    import torch

LIBRARIES = ("safetydpo", "torch", "diffusers", "peft", "transformers")
PARQUET: Any = {"compression": "zstd", "write_page_checksum": True}
DIGEST = "sha256"  # in the header of a safetensors file: of all else that is in the file


def made_by(stage: str, **facts: Any) -> dict[str, str]:
    """Header of a stage's file: stage, its version, config slice, seed, model, library versions."""
    libraries = {name: version(name) for name in LIBRARIES}
    return {"safetydpo": json.dumps({"stage": stage, "version": STAGE_VERSION[stage], "libraries": libraries, **facts})}


@contextmanager
def whole_file(path: Path | str) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well and removed when it does not.

    Raises SafetyDPOError where the block cannot write; so nothing else that may fail belongs in it.
    """
    path = Path(path)
    with _renamed(path) as temporary, _writing(path):
        yield temporary


@contextmanager
def _renamed(path: Path) -> Iterator[Path]:
    """As whole_file, for a block that does other work too and says itself where it cannot write."""
    temporary = _temporary(path)
    try:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_unfinished(path.parent, _start(path))
            temporary.touch()
            mode = temporary.stat().st_mode  # as the umask says; safetensors makes it the owner's alone
        yield temporary
        with _writing(path):
            temporary.chmod(mode)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())  # or a power cut may leave the new name without the contents
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def whole_folder(path: Path | str) -> Iterator[Path]:
    """As whole_file, for a folder: it takes the place of one that is there."""
    path = Path(path)
    temporary = _temporary(path)
    old = temporary.with_name(f"{temporary.name.removesuffix('.tmp')}.old")
    try:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_unfinished(path.parent, _start(path))
            temporary.mkdir()
            yield temporary
            for file in temporary.rglob("*"):
                with suppress(IsADirectoryError), file.open("rb") as written:
                    os.fsync(written.fileno())
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
    except SafetyDPOError as error:  # of a file in it, which will not be there
        raise SafetyDPOError(str(error).replace(str(temporary), str(path))) from None
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _writing(path: Path | str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SafetyDPOError(
            f"Cannot write {path}: {reason}. Free space or make the folder writable, then rerun."
        ) from None


def remove_unfinished(folder: Path, start: str) -> None:
    """Remove what killed processes of this machine left of files whose names start so; the living write on."""
    for left in (*folder.glob(f".{glob.escape(start)}*@*.tmp"), *folder.glob(f".{glob.escape(start)}*@*.old")):
        begin, _, host = left.name.rpartition(".")[0].rpartition("@")
        number = begin.rpartition(".")[2]
        if host == _host() and number.isdigit() and not _lives(int(number)):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """A name of this process's own, no longer than file systems allow."""
    return path.with_name(f".{_start(path)}{os.getpid()}@{_host()}.tmp")


def _start(path: Path) -> str:
    return os.fsencode(path.name)[:150].decode(errors="ignore") + "."


def _host() -> str:
    return socket.gethostname()[:40]


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def write_text(text: str, path: Path | str) -> None:
    """Write a text file whole."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def _readable(path: Path | str, kind: str, own: bool) -> Iterator[None]:
    """What reading can come to, in a sentence that is true of the file's owner."""
    try:
        yield
    except FileNotFoundError:
        todo = (
            "is missing: rerun snakemake, it will make it"
            if own
            else "does not exist: put it there or correct the path"
        )
        raise SafetyDPOError(f"{path} {todo}.") from None
    except (pa.ArrowException, SafetensorError, OSError, ValueError) as error:
        if getattr(error, "errno", None):
            raise SafetyDPOError(f"{path} cannot be read ({error.strerror}): mend that, then rerun.") from None  # type: ignore[union-attr]
        todo = "delete it and rerun snakemake" if own else "replace it by a whole one"
        raise SafetyDPOError(f"{path} is not a whole {kind} ({str(error).splitlines()[0]}): {todo}.") from None


def read_json(path: Path | str, own: bool = True) -> dict[str, Any]:
    """The object of a JSON file; SafetyDPOError when it is missing, damaged or holds something else."""
    with _readable(path, "JSON file", own):
        values = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__}")
        return values


def write_parquet(
    rows: pd.DataFrame | list[dict[str, Any]], path: Path | str, header: dict[str, str] | None = None
) -> None:
    """Write a table whole, its pages with checksums."""
    many = isinstance(rows, pd.DataFrame)
    table: Any = pa.Table.from_pandas(rows, preserve_index=False) if many else pa.Table.from_pylist(rows)
    with whole_file(path) as temporary:
        metadata = (table.schema.metadata or {}) | _encoded(header or {})
        pq.write_table(table.replace_schema_metadata(metadata), temporary, **PARQUET)


def write_batches(tables: Iterable[pa.Table], path: Path | str, header: dict[str, str]) -> int:
    """Write tables of one schema as they come, a row group each, none of them kept; returns the number of rows."""
    path, count, writer = Path(path), 0, None
    with _renamed(path) as temporary, ExitStack() as closing:
        for table in tables:  # a fault of whoever makes them is not ours to explain
            with _writing(path):
                if writer is None:
                    schema = table.schema.with_metadata(_encoded(header) | (table.schema.metadata or {}))
                    writer = closing.enter_context(pq.ParquetWriter(temporary, schema, **PARQUET))
                writer.write_table(table.cast(writer.schema))
            count += len(table)
            del table  # before the next one is made
        if writer is None:
            raise SafetyDPOError(f"{path}: nothing to write.")
        with _writing(path):
            closing.close()  # the file must be whole before it gets its name
    return count


def _encoded(header: dict[str, str]) -> dict[bytes, bytes]:
    return {key.encode(): value.encode() for key, value in header.items()}


def rows_in(paths: Sequence[Path | str]) -> int:
    """Rows of several tables together, by their footers."""
    count = 0
    for path in paths:
        with _readable(path, "Parquet file", True):
            count += pq.read_metadata(path).num_rows
    return count


def read_batches(paths: Sequence[Path | str], size: int) -> Iterator[pd.DataFrame]:
    """The rows of several tables, `size` at a time; SafetyDPOError as read_parquet."""
    for path in paths:
        with _readable(path, "Parquet file", True), pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(size):
                yield batch.to_pandas()


def columns_of(path: Path | str, own: bool = True) -> list[str]:
    """Names of a table's columns; SafetyDPOError as read_parquet."""
    with _readable(path, "Parquet file", own):
        return list(pq.read_schema(path).names)


def read_header(path: Path | str) -> dict[str, Any]:
    """What `made_by` says in a table of ours; empty where nobody says anything. SafetyDPOError as read_parquet."""
    with _readable(path, "Parquet file", True):
        return json.loads((pq.read_schema(path).metadata or {}).get(b"safetydpo", b"{}"))


def read_parquet(path: Path | str, columns: list[str] | None = None, own: bool = True) -> pd.DataFrame:
    """Read a table; SafetyDPOError when it is missing, damaged or lacks a column."""
    table = read_table(path, columns, own)
    with _readable(path, "Parquet file", own):
        return table.to_pandas()


def read_table(path: Path | str, columns: list[str] | None = None, own: bool = True) -> pa.Table:
    """As read_parquet, for whom null is not NaN."""
    if missing := set(columns or ()) - set(columns_of(path, own)):
        raise SafetyDPOError(f"{path} has no column {min(missing)}.")
    with _readable(path, "Parquet file", own):
        return pq.read_table(path, columns=columns, page_checksum_verification=True)


def write_safetensors(tensors: "dict[str, torch.Tensor]", path: Path | str, header: dict[str, str]) -> None:
    """Write tensors whole, with a digest of them and of the header in the header."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole_file(path) as temporary:
        save_file(tensors, temporary, header | {DIGEST: _digest(tensors, header)})


def read_safetensors(
    path: Path | str, own: bool = True, check: bool = True
) -> "tuple[dict[str, torch.Tensor], dict[str, str]]":
    """Tensors and header of a safetensors file; with `check` every byte is read, without it none until it is used.

    SafetyDPOError when it is missing or damaged, and on a check when it is not what was written (where it has our
    digest, which other people's files lack) or holds a number that is NaN or infinite.
    """
    with _readable(path, "safetensors file", own):
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            header = dict(file.metadata() or {})
        written = header.get(DIGEST)
        if check and written and written != _digest(tensors, header):
            raise ValueError("its contents are not what was written")
    for name, tensor in tensors.items() if check else ():
        if tensor.is_floating_point():
            finite(tensor, f"{name} of {path}", "delete the file and rerun snakemake" if own else "get a whole one")
    return tensors, header


def _digest(tensors: "dict[str, torch.Tensor]", header: dict[str, str]) -> str:
    """SHA-256 of a file's tensors and of its other header, whatever order the file has them in."""
    import torch

    rest = {key: value for key, value in header.items() if key != DIGEST}
    found = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
