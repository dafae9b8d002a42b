"""Images: files of people, and cells of a Parquet file in the layout that `datasets` opens."""

import io
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image, UnidentifiedImageError

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.files import read_batches, read_parquet, write_batches

# Rows of a row group, so that readers can take few images at a time and writers need keep no more.
IMAGES_AT_ONCE = 256
# What Pillow has suffixes for, but no pixels of: drawings (EPS would start Ghostscript), films, containers of data.
NO_PICTURES = {"BUFR", "EPS", "FITS", "GRIB", "HDF5", "MPEG", "PALM", "PDF", "WMF"}
Image.init()  # here, because it is not made for threads
FORMATS = [kind for kind in Image.OPEN if kind not in NO_PICTURES]


def is_picture(path: Path) -> bool:
    """Whether a file's name is one that `picture` reads: not hidden (`._a.png`), and with an image's suffix."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    return not path.name.startswith(".") and kind is not None and kind not in NO_PICTURES


def picture(path: Path, data: bytes | None = None) -> np.ndarray:
    """A user's image of any kind as uint8 (h, w, 3); SafetyDPOError where it cannot be read.

    data: the image itself, where `path` only says where it stands. As published tools do, it takes the first frame,
    drops alpha, and does not turn the image as EXIF says.
    """
    return _decoded(path if data is None else io.BytesIO(data), str(path), "replace or remove it")


def _decoded(source: Path | io.BytesIO, name: str, todo: str) -> np.ndarray:
    try:
        with Image.open(source, formats=FORMATS) as image:
            return _pixels(image)
    except Exception as error:  # what Pillow's plugins stumble over has no common base
        reason = getattr(error, "strerror", None) or str(error)
        reason = "no kind of image that is known" if isinstance(error, UnidentifiedImageError) else reason
        raise SafetyDPOError(f"{name} cannot be read as an image ({reason}): {todo}.") from None


def _pixels(image: Image.Image) -> np.ndarray:
    """Gray of 16 bits loses the lower 8, as colour does in Pillow, which makes white of nearly all gray values."""
    if image.mode.startswith("I"):
        values = np.asarray(image)
        wide = image.mode != "I" or image.format == "PPM" or values.max() > 255
        if values.min() < 0 or values.max() >= 2**16:
            raise ValueError("gray of 32 bits, of which white is not known")
        image = Image.fromarray((values >> 8 if wide else values).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("gray in floating point, of which white is not known")
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def png(pixels: np.ndarray) -> dict[str, bytes | None]:
    """uint8 (h, w, 3) as the image layout of `datasets`: {"bytes": PNG, "path": None}."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def unpng(image: dict[str, Any]) -> np.ndarray:
    """The pixels of such a cell, uint8 (h, w, 3); SafetyDPOError where they are damaged, with the place that
    `read_images` put down.
    """
    return _decoded(
        io.BytesIO(image["bytes"] or b""), image["path"] or "An image", "delete the file and rerun snakemake"
    )


def read_images(path: Path | str, columns: list[str] | None = None) -> pd.DataFrame:
    """read_parquet, whose image cells know where they stand, for `unpng`."""
    return _named(read_parquet(path, columns), path)


def read_image_batches(paths: Sequence[Path | str], size: int) -> Iterator[pd.DataFrame]:
    """read_batches, whose image cells know where they stand, for `unpng`."""
    for path in paths:
        for rows in read_batches([path], size):
            yield _named(rows, path)


def _named(rows: pd.DataFrame, path: Path | str) -> pd.DataFrame:
    key = "pair_id" if "pair_id" in rows else "prompt_id"
    for column in [name for name in rows if str(name).endswith("image")]:
        named = zip(rows[column], rows[key], strict=True)
        cells: list[Any] = [
            {"bytes": (cell or {}).get("bytes"), "path": f"{path}: {column} of {i}"} for cell, i in named
        ]
        rows[column] = cells
    return rows


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
