"""Images that prompt pairs bring along: files, or rows of Parquet shards, as published training sets have them.

A reference says where an image is: `folder/a.jpg`, or `folder/train-0.parquet#12` for row 12 of the column `image`.
"""

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.images import picture

CELLS = "image"  # the shards' column of {"bytes", "path"}


def references(shard: Path) -> dict[str, str]:
    """Name of each image in a shard -> its reference; none where the shard has no such column."""
    try:
        with pq.ParquetFile(shard) as file:
            if CELLS not in file.schema_arrow.names:
                return {}
            paths = file.read([f"{CELLS}.path"]).column(CELLS).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(shard, error) from None
    return {cell["path"]: f"{shard}#{row}" for row, cell in enumerate(paths) if cell and cell.get("path")}


def brought(reference: str) -> np.ndarray:
    """The pixels at a reference, uint8 (h, w, 3); SafetyDPOError where there is no image that can be read."""
    shard, _, row = reference.rpartition("#")
    if not (shard.endswith(".parquet") and row.isdigit()):
        return picture(Path(reference))
    try:
        starts = _starts(shard)
        group = bisect_right(starts, int(row)) - 1
        cell = _cells(shard, group)[int(row) - starts[group]].as_py() or {}
    except (OSError, pa.ArrowException, IndexError) as error:
        raise _unreadable(shard, error) from None
    return picture(Path(reference), cell.get("bytes") or b"")


@lru_cache(maxsize=64)
def _starts(shard: str) -> list[int]:
    """The first row of each row group."""
    with pq.ParquetFile(shard) as file:
        counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    return [0, *accumulate(counts)][:-1]


@lru_cache(maxsize=2)  # where pairs are read in order, unsafe and safe images come from one row group each
def _cells(shard: str, group: int) -> pa.ChunkedArray:
    with pq.ParquetFile(shard) as file:
        return file.read_row_group(group, [f"{CELLS}.bytes"]).column(CELLS)


def _unreadable(shard: Path | str, error: Exception) -> SafetyDPOError:
    reason = str(error).split("\n")[0]
    return SafetyDPOError(f"{shard} is not a whole Parquet file ({reason}): replace it by a whole one.")
