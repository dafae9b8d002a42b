"""Sets of images as files hold them, and the distances between two: of a method, of people, or moments alone."""

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.distances import Between, Cloud, Moments, cmmd, fid, kid
from safetydpo.evaluation.scores import AGAIN, VECTORS
from safetydpo.storage.files import columns_of, read_parquet
from safetydpo.storage.finite import finite

# distance between two sets of images -> (function, column it is measured in, the least that it can be)
DISTANCES = {"fid": (fid, "features", 0.0), "kid": (kid, "features", -np.inf), "cmmd": (cmmd, "embedding", 0.0)}


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


def clouds(path: Path | str) -> dict[str, Cloud | Moments]:
    """Vectors of images, by column, from a scores file, a table of people's images, or an npz with `mu` and `sigma` of
    their features.
    """
    if str(path).endswith(".npz"):
        return {"features": Moments(*read_moments(path))}
    there = columns_of(path)
    frame = read_parquet(path, [name for name in (*VECTORS, "prompt") if name in there])
    found: dict[str, Cloud | Moments] = {}
    for name in VECTORS:
        vectors = np.stack(list(frame[name]))
        finite(vectors, f"{name} of {path}", AGAIN)
        found[name] = Cloud(vectors, frame.prompt if "prompt" in frame else None)
    return found


def distances(own: Mapping[str, Any], reference: Mapping[str, Any], whose: str) -> dict[str, Between]:
    """FID, KID and CMMD of a method's images from the reference, both by column; of moments alone, FID.

    None of a single image: it has no covariance.
    """
    found = {}
    for metric, (distance, column, _) in DISTANCES.items():
        x, y = own[column], reference.get(column)
        if y is None or (isinstance(y, Moments) and distance is not fid):
            continue
        if x.width != y.width:
            raise SafetyDPOError(
                f"{whose}: its {column} have {x.width} numbers an image, those of evaluate.fid_reference {y.width}: "
                "give one that was measured by the same judges.features."
            )
        if min(len(each) for each in (x, y) if isinstance(each, Cloud)) < 2:
            print(f"{whose}: one image alone: FID, KID and CMMD are not measured")
            return {}
        found[metric] = Between(distance(x, y), x.groups, y.groups if isinstance(y, Cloud) else np.empty(0, object))
    return found


def distance_rows(found: Mapping[str, Between]) -> list[dict[str, Any]]:
    """Metric rows of distances, which are measured on all images of a benchmark together."""
    return [
        {"category": "all", "metric": metric, **between.estimate(DISTANCES[metric][2])._asdict()}
        for metric, between in found.items()
    ]
