"""Images as cells of a Parquet file, in the layout that `datasets` opens."""

import io
from typing import Any

import numpy as np
from PIL import Image


def png(pixels: np.ndarray) -> dict[str, bytes | None]:
    """uint8 (h, w, 3) as the image layout of `datasets`: {"bytes": PNG, "path": None}."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def unpng(image: dict[str, Any]) -> np.ndarray:
    """The pixels of such a cell, uint8 (h, w, 3)."""
    return np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB"))
