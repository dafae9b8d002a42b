"""Prompt pairs from files that people have: the published csv, any csv or Parquet, the published image folder."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pandas as pd

from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.request import Request, table
from safetydpo.storage.brought import brought, references
from safetydpo.storage.records import category_id
from safetydpo.storage.tables import read_rows

IMAGE_NAME = r"^([us])_idx_(\d+)_0\.jpg$"
TABLES = ("metadata.parquet", "metadata.csv", "train.parquet", "train.csv")
SHARDS = ("data/train*.parquet", "train*.parquet", "train/*.parquet")  # as the hub and `datasets` name them


def coprov2(request: Request) -> pd.DataFrame:
    """CoProV2_train.csv: `u_idx_N_0.jpg` and `s_idx_N_0.jpg` are a pair, wherever they stand in the file.

    An id may belong to several categories; its rows are then there several times. Some safe prompts are junk, made of
    dashes.
    """
    rows = _rows(request, ["prompt", "image", "category"])
    parts = rows.image.str.strip().str.extract(IMAGE_NAME)
    rows = rows.assign(kind=parts[0], number=parts[1].fillna(rows.image))
    rows = rows.drop_duplicates(["number", "kind", "prompt"])
    if (again := rows.duplicated(["number", "kind"]) & rows.kind.notna()).any():
        raise SafetyDPOError(
            f"{request.config.path} has several prompts for {rows.image[again].iloc[0]}: leave one of them."
        )
    wide = (
        rows.drop_duplicates(["number", "kind"])
        .pivot(index="number", columns="kind", values="prompt")
        .reindex(columns=["u", "s"])
    )
    unsafe, safe = wide.u.fillna("").astype(str), wide.s.fillna("").astype(str)
    faults = np.where(wide.u.isna() | wide.s.isna(), "unpaired", np.where(safe.str.startswith("---"), "junk", ""))
    return table("", unsafe.to_list(), safe.to_list(), faults.tolist(), [f"id {number}" for number in wide.index])


def pairs(request: Request) -> pd.DataFrame:
    """One row a pair: unsafe_prompt, safe_prompt, category and, if there, concept; in file order."""
    rows = _rows(request, ["unsafe_prompt", "safe_prompt", "category"], ["concept"])
    concepts = rows.concept.to_list() if "concept" in rows else ""
    found = table(concepts, rows.unsafe_prompt.to_list(), rows.safe_prompt.to_list())
    wanted = request.category.concepts
    return found[found.concept.isin(wanted)].reset_index(drop=True) if wanted else found


def folder(request: Request) -> pd.DataFrame:
    """The published training sets: tables with jpg_0, jpg_1, label_0, caption and, if there, category.

    label_0 is 1 where jpg_0 is the preferred (safe) image, 0 where jpg_1 is; the caption is the unsafe prompt. The
    images are files of the folder, or cells of the tables, a row an image, so that each pair comes twice. Without a
    column `category` all rows are of the category whose folder it is, <path>/<category>/, or of the only one.
    """
    root = Path(request.config.path or "")
    own = next((p for p in root.glob("*") if p.is_dir() and category_id(p.name) == request.category.name), None)
    tables = _tables(own or root)
    parts = [read_rows(path, ["jpg_0", "jpg_1", "label_0", "caption"], ["category"]) for path in tables]
    rows = pd.concat(parts, ignore_index=True).fillna("")
    if "category" in rows:
        rows = _of_category(request, rows)
    elif own is None and not request.alone:
        raise SafetyDPOError(
            f"{root} has no column `category` and no folder {request.category.name}/: which images are of which? Add "
            "one of them, or give the config a single category."
        )
    labels = pd.to_numeric(rows.label_0, errors="coerce")
    first, second = rows.jpg_0.str.strip(), rows.jpg_1.str.strip()
    found = table("", rows.caption.to_list(), [""] * len(rows))
    found["unsafe_file"], found["safe_file"] = second.where(labels == 1, first), first.where(labels == 1, second)
    rows_of = list(zip(found.unsafe_prompt, found.unsafe_file, found.safe_file, strict=True))
    both = {(prompt, safe, unsafe) for prompt, unsafe, safe in rows_of} & set(rows_of)
    clear = [label in (0, 1) and row not in both for row, label in zip(rows_of, labels, strict=True)]
    found["fault"] = ["" if one else "no preference" for one in clear]
    found = found.drop_duplicates(["unsafe_prompt", "unsafe_file", "safe_file"], ignore_index=True)
    print(f"{own or root}: {len(rows)} rows, {len(found)} different pairs")
    return _with_images(found, tables, own or root)


def _tables(root: Path) -> list[Path]:
    """The table beside the images, or the shards that hold them."""
    if path := next((root / name for name in TABLES if (root / name).is_file()), None):
        return [path]
    for pattern in SHARDS:
        if shards := sorted(path for path in root.glob(pattern) if not path.name.startswith(".")):
            return shards
    raise SafetyDPOError(
        f"{root} has no {' or '.join((*TABLES, *SHARDS))} with jpg_0, jpg_1, label_0, caption: put it there."
    )


def _with_images(found: pd.DataFrame, tables: list[Path], root: Path) -> pd.DataFrame:
    """Pairs with references in place of image names; a fault where one of the images cannot be read."""
    cells = {name: where for path in tables if path.suffix == ".parquet" for name, where in references(path).items()}
    pairs = list(zip(found.unsafe_file, found.safe_file, strict=True))
    known = {name: _reference(root, name, cells) for name in dict.fromkeys(chain.from_iterable(pairs))}
    broken = [next((name for name in pair if not known[name]), "") for pair in pairs]
    faults = [fault or ("image" if name else "") for fault, name in zip(found.fault, broken, strict=True)]
    return found.assign(
        fault=faults, detail=broken, unsafe_file=found.unsafe_file.map(known), safe_file=found.safe_file.map(known)
    )


def _reference(root: Path, name: str, cells: dict[str, str]) -> str:
    """Where the image is, in a table or as a file inside the folder; "" if there is none that can be read."""
    reference = cells.get(name) or str(root / name)
    try:
        if not name or (name not in cells and not Path(reference).resolve().is_relative_to(root.resolve())):
            return ""
        brought(reference)
    except (SafetyDPOError, OSError, ValueError):
        return ""
    return reference


def _rows(request: Request, needs: Sequence[str], takes: Sequence[str] = ()) -> pd.DataFrame:
    return _of_category(request, read_rows(request.config.path or "", needs, takes))


def _of_category(request: Request, rows: pd.DataFrame) -> pd.DataFrame:
    ids = rows.category.map(category_id)
    own = rows[ids == category_id(request.category.name)]
    print(f"{request.config.path}: {len(rows)} rows, {len(own)} of category {request.category.name}")
    if own.empty:
        there = ", ".join(f"{name} ({count})" for name, count in ids.value_counts().items())
        print(f"its categories: {there or 'none'}")
    return own.reset_index(drop=True)
