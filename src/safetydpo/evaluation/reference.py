"""What FID is measured to where it is not a method's images: people's images, or the moments of their features."""

import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa

from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.folder import Folder
from safetydpo.evaluation.scoring import VECTORS
from safetydpo.judges.eyes import Eyes
from safetydpo.judges.sound import sound_scores
from safetydpo.storage.finite import finite


def read_moments(path: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """mu (d,) and sigma (d, d) of an npz."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
        if not {"mu", "sigma"} <= set(names):
            raise SafetyDPOError(f"{path} needs the arrays mu and sigma; it has {', '.join(names)}.")
        with np.load(path, allow_pickle=False) as file:
            mu, sigma = (np.asarray(file[name], np.float64) for name in ("mu", "sigma"))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise SafetyDPOError(f"{path} cannot be read as an npz ({error}): replace it by a whole one.") from None
    if mu.ndim != 1 or sigma.shape != (*mu.shape, *mu.shape):
        raise SafetyDPOError(f"{path} has mu {mu.shape} and sigma {sigma.shape}; they must be (d,) and (d, d).")
    for name, values in (("mu", mu), ("sigma", sigma)):
        finite(values, f"{name} of {path}", "make it again")
    return mu, sigma


def vectors_of(folder: Folder, eyes: Eyes) -> Iterator[pa.Table]:
    """Columns VECTORS of a folder's images, a table a batch; SafetyDPOError where it has fewer than two."""
    count = 0
    for names, images in folder:
        rows = sound_scores(eyes.look(images, [""]), f"the images from {folder.path / names[0]} on")
        kinds = [(name, pa.list_(pa.float32(), len(rows[0][name]))) for name in VECTORS]
        yield pa.Table.from_pylist([{name: row[name] for name in VECTORS} for row in rows], pa.schema(kinds))
        count += len(rows)
    if count < 2:
        raise SafetyDPOError(f"{folder.path} has one image that can be read: FID needs two or more.")
