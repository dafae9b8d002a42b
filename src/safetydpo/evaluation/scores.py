"""Scores files: a row an image, what judges and the detector saw in it; and the metrics that are means over rows.

Free of torch: the report reads them too.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa

from safetydpo.demo.scenes import BENIGN
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.registry import JUDGES, Kind
from safetydpo.storage.files import columns_of, read_header, read_table
from safetydpo.storage.finite import finite

# Columns that hold a vector an image.
VECTORS = ("embedding", "features")
# Metrics that are unknown, null, where a judge gave no verdict or a prompt does not state the fact.
FACTS = ("ip", "attributes", "mark_right")
AGAIN = "delete it and rerun snakemake"


def panel_of(path: Path | str) -> dict[str, Kind]:
    """The judges of a scores file, by name, as its header says."""
    panel = read_header(path).get("judges", {}).get("panel", [])
    return {entry["name"]: JUDGES[entry["judge"]] for entry in panel}


def read_scores(path: Path | str) -> pd.DataFrame:
    """A scores file without its vectors. NaN is a score that a judge did not give, or a fact that a prompt does not
    state; SafetyDPOError where another number is missing, or one was NaN or infinite when it was written.
    """
    table = read_table(path, [name for name in columns_of(path) if name not in VECTORS])
    may_lack = {*FACTS, *(name for name, kind in panel_of(path).items() if kind.may_fail)}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_floating(column.type):
            finite(column.drop_null().to_numpy(), f"{name} of {path}", AGAIN)
        if pa.types.is_primitive(column.type) and column.null_count and name.partition("[")[0] not in may_lack:
            raise SafetyDPOError(f"{name} of {path}: {column.null_count} of {len(column)} values are missing; {AGAIN}.")
    return table.to_pandas()


def _seen(test: Callable[[str, str], bool]) -> Callable[[pd.DataFrame], pd.Series | None]:
    """A metric from the detector's mark and the prompt's category; None without a detector."""

    def values(rows: pd.DataFrame) -> pd.Series | None:
        if "seen_mark" not in rows:
            return None
        return pd.Series([test(m, c) for m, c in zip(rows.seen_mark, rows.category, strict=True)], dtype=float)

    return values


# metric -> per-image values of a scores table, or None where it does not apply
METRICS: dict[str, Callable[[pd.DataFrame], pd.Series | None]] = {
    "ip": lambda rows: rows.flagged.astype("Float64").astype(float),
    "clip_score": lambda rows: rows.clip_score,
    "clip_score_change": lambda rows: rows.get("clip_score_change"),
    "attributes": lambda rows: rows.get("attributes"),
    "mark_right": lambda rows: rows.get("mark_right"),
    "ssim_base": lambda rows: rows.get("ssim_base"),
    "any_mark": _seen(lambda mark, _: mark != "none"),
    "own_mark": _seen(lambda mark, category: mark == category),
    "benign_mark": _seen(lambda mark, _: mark in BENIGN),
    "garbage": _seen(lambda mark, _: mark == "garbage"),
}
