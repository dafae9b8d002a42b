"""Prompt pairs from files that people have: the published csv, any csv or Parquet, the published image folder."""

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.request import Request, table
from safetydpo.storage.files import read_rows
from safetydpo.storage.records import category_id

IMAGE_NAME = r"^([us])_idx_(\d+)_0\.jpg$"
TABLES = ("metadata.parquet", "metadata.csv", "train.parquet", "train.csv")


def coprov2(request: Request) -> pd.DataFrame:
    """CoProV2_train.csv: `u_idx_N_0.jpg` and `s_idx_N_0.jpg` are a pair, wherever they stand in the file.

    An id may belong to several categories; its rows are then there several times. Some safe prompts are junk, made of
    dashes.
    """
    rows = _of_category(request, _rows(request, "prompt", "image", "category"))
    parts = rows.image.str.extract(IMAGE_NAME)
    rows = rows.assign(kind=parts[0], number=parts[1].fillna(rows.image)).drop_duplicates(["number", "kind"])
    wide = rows.pivot(index="number", columns="kind", values="prompt").reindex(columns=["u", "s"])
    unsafe, safe = wide.u.fillna("").astype(str), wide.s.fillna("").astype(str)
    faults = np.where(wide.u.isna() | wide.s.isna(), "unpaired", np.where(safe.str.startswith("---"), "junk", ""))
    return table("", unsafe.to_list(), safe.to_list(), faults.tolist(), [f"id {number}" for number in wide.index])


def pairs(request: Request) -> pd.DataFrame:
    """One row a pair: unsafe_prompt, safe_prompt, category and, if there, concept; in file order."""
    rows = _of_category(request, _rows(request, "unsafe_prompt", "safe_prompt", "category"))
    concepts = rows.concept.to_list() if "concept" in rows else ""
    found = table(concepts, rows.unsafe_prompt.to_list(), rows.safe_prompt.to_list())
    wanted = request.category.concepts
    return found[found.concept.isin(wanted)].reset_index(drop=True) if wanted else found


def folder(request: Request) -> pd.DataFrame:
    """The published training folder: a table with jpg_0, jpg_1, label_0, caption and, if there, category.

    label_0 is 1 where jpg_0 is the preferred (safe) image, 0 where jpg_1 is; the caption is the unsafe prompt.
    Without a column `category` all rows are of the category whose folder it is, <path>/<category>/.
    """
    root = Path(request.config.path or "")
    own = next((p for p in root.glob("*") if p.is_dir() and category_id(p.name) == request.category.name), None)
    rows, root = _folder_rows(own or root)
    if "category" in rows:
        rows = _of_category(request, rows)
    elif own is None:
        raise SafetyDPOError(
            f"{root} has no column `category` and no folder {request.category.name}/: which images are of which?"
        )
    labels = pd.to_numeric(rows.label_0, errors="coerce")
    first, second = (rows[name].to_list() for name in ("jpg_0", "jpg_1"))
    safe = [a if label == 1 else b for a, b, label in zip(first, second, labels, strict=True)]
    unsafe = [b if label == 1 else a for a, b, label in zip(first, second, labels, strict=True)]
    faults = ["" if label in (0, 1) else "no preference" for label in labels]
    broken = [next((name for name in pair if not _readable(root, name)), "") for pair in zip(unsafe, safe, strict=True)]
    faults = [fault or ("image" if name else "") for fault, name in zip(faults, broken, strict=True)]
    found = table("", rows.caption.to_list(), [""] * len(rows), faults, broken)
    return found.assign(unsafe_file=[str(root / n) for n in unsafe], safe_file=[str(root / n) for n in safe])


def _folder_rows(root: Path) -> tuple[pd.DataFrame, Path]:
    path = next((root / name for name in TABLES if (root / name).is_file()), None)
    if path is None:
        raise SafetyDPOError(f"{root} has no {' or '.join(TABLES)} with jpg_0, jpg_1, label_0, caption.")
    rows = read_rows(path)
    _needs(path, rows, "jpg_0", "jpg_1", "label_0", "caption")
    return rows, root


def _readable(root: Path, name: str) -> bool:
    """Whether the file is a whole image inside the folder."""
    path = (root / name).resolve()
    if not name or not path.is_relative_to(root.resolve()):
        return False
    try:
        with Image.open(path) as image:
            image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return True


def _needs(path: Path | str, rows: pd.DataFrame, *columns: str) -> None:
    missing = [name for name in columns if name not in rows]
    if missing:
        raise SafetyDPOError(
            f"{path} has no column `{missing[0]}`; it needs {', '.join(columns)} and has {', '.join(rows.columns)}."
        )


def _rows(request: Request, *columns: str) -> pd.DataFrame:
    path = request.config.path or ""
    rows = read_rows(path)
    _needs(path, rows, *columns)
    return rows


def _of_category(request: Request, rows: pd.DataFrame) -> pd.DataFrame:
    ids = rows.category.map(category_id)
    own = rows[ids == category_id(request.category.name)]
    print(f"{request.config.path}: {len(rows)} rows, {len(own)} of category {request.category.name}")
    if own.empty:
        there = ", ".join(f"{name} ({count})" for name, count in ids.value_counts().items())
        print(f"its categories: {there or 'none'}")
    return own.reset_index(drop=True)
