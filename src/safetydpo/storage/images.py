"""Images as cells of a Parquet file, in the layout that `datasets` opens."""

import io
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from safetydpo.storage.files import write_batches

# Rows of a row group, so that readers can take few images at a time and writers need keep no more.
IMAGES_AT_ONCE = 256


def png(pixels: np.ndarray) -> dict[str, bytes | None]:
    """uint8 (h, w, 3) as the image layout of `datasets`: {"bytes": PNG, "path": None}."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def unpng(image: dict[str, Any]) -> np.ndarray:
    """The pixels of such a cell, uint8 (h, w, 3)."""
    return np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB"))


def write_images(
    rows: Iterable[dict[str, Any]], path: Path | str, header: dict[str, str], images: tuple[str, ...]
) -> int:
    """Write rows whose columns `images` are cells of `png`, IMAGES_AT_ONCE at a time, so that a shard's size costs no
    memory; `datasets` opens them as images. Returns the number of rows.
    """
    return write_batches(_tables(iter(rows), images), path, header)


def _tables(rows: Iterator[dict[str, Any]], images: tuple[str, ...]) -> Iterator[pa.Table]:
    groups = iter(lambda: list(islice(rows, IMAGES_AT_ONCE)), [])
    return (_table(group, images) for group in groups)


def _table(rows: list[dict[str, Any]], images: tuple[str, ...]) -> pa.Table:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table: Any = pa.Table.from_pylist(rows)
    rows.clear()  # or a group is kept while the next one is rendered
    for name in images:
        i = table.schema.get_field_index(name)
        table = table.set_column(i, pa.field(name, kind), table.column(name).cast(kind))
    return table.replace_schema_metadata({b"huggingface": _features(table.schema, images).encode()})


def _features(schema: pa.Schema, images: tuple[str, ...]) -> str:
    """The header by which `datasets` knows image columns; other columns it reads from the Arrow schema."""
    features = {}
    for field in schema:
        if field.name in images:
            features[field.name] = {"_type": "Image"}
        else:
            name = {"double": "float64", "float": "float32", "large_string": "string"}.get(
                str(field.type), str(field.type)
            )
            features[field.name] = {"dtype": name, "_type": "Value"}
    return json.dumps({"info": {"features": features}})
