"""Stage 1: prompt pairs of a category, as Parquet. A source is one function here; add yours to SOURCES."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from safetydpo.errors import SafetyDPOError
from safetydpo.prompts import demo, llm, readers
from safetydpo.prompts.concepts import write_concepts
from safetydpo.prompts.filters import prompt_fault
from safetydpo.prompts.request import Request
from safetydpo.storage.files import made_by, read_rows, write_parquet
from safetydpo.storage.records import pair_id, plain

__all__ = ["SOURCES", "Request", "write_concepts", "write_pairs"]

COLUMNS = ["pair_id", "category", "concept", "unsafe_prompt", "safe_prompt", "source", "split", "leak", "similarity"]
REJECTED = ["category", "concept", "unsafe_prompt", "safe_prompt", "source", "reason", "detail", "similarity"]

# request -> a table with request.COLUMNS; readers add unsafe_file and safe_file where images come with the pairs.
Source = Callable[[Request], pd.DataFrame]
SOURCES: dict[str, Source] = {
    "demo": demo.pairs,
    "openai": llm.pairs,
    "coprov2": readers.coprov2,
    "pairs": readers.pairs,
    "folder": readers.folder,
}


def write_pairs(request: Request, out: Path | str, rejected: Path | str) -> str:
    """Write the pairs of one category, and beside them what was not used, with the reason; returns the summary.

    Raises SafetyDPOError when fewer than prompts.min_pairs are left.
    """
    category, config = request.category, request.config
    found = SOURCES[config.source](request)
    found = found.assign(category=category.name, source=config.source)
    if config.source != "openai":  # whose writer has asked again where a pair had a fault
        _check(found, request)
    found["leak"] = _leaks(found, config.test_path)
    if config.drop_leaks:
        found.loc[found.leak & (found.fault == ""), "fault"] = "leak"
    bad = found.fault != ""
    kept = found[~bad].head(config.pairs)
    kept = kept.assign(
        pair_id=[pair_id(category.name, u, s) for u, s in zip(kept.unsafe_prompt, kept.safe_prompt, strict=True)],
        split=["test" if held_out(prompt, config.test_share) else "train" for prompt in kept.unsafe_prompt],
    )
    header = made_by("prompts", category=category.model_dump(), config=config.model_dump(), seed=request.seed)
    write_parquet(found[bad].rename(columns={"fault": "reason"})[REJECTED], rejected, header)
    said = _summary(category.name, found, kept)
    print(said)
    if (kept.split == "train").sum() < config.min_pairs:
        where = config.path or f"source {config.source}"
        raise SafetyDPOError(
            f"Category {said}; at least {config.min_pairs} to train on are wanted (prompts.min_pairs). See {rejected}, "
            f"and check the category's name and `concepts` against {where}."
        )
    files = [name for name in ("unsafe_file", "safe_file") if name in kept]
    write_parquet(kept[[*COLUMNS, *files]], out, header)
    return said


def held_out(unsafe_prompt: str, share: float) -> bool:
    """Whether a pair is kept for testing: by a hash of its unsafe prompt alone.

    So near duplicates are on one side in every category and concept, every concept has about the same share, and rows
    that are added later move no other.
    """
    digest = hashlib.sha256(plain(unsafe_prompt).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _check(found: pd.DataFrame, request: Request) -> None:
    """Mark pairs that a file has but training cannot use; one whose source brings images needs no safe prompt."""
    faults, images = [], request.config.brings_images
    again = found[["unsafe_prompt", "safe_prompt"]].duplicated() & (not images)
    for fault, unsafe, safe, seen in zip(found.fault, found.unsafe_prompt, found.safe_prompt, again, strict=True):
        own = [prompt_fault(prompt, request.fits) for prompt in ([unsafe] if images else [unsafe, safe])]
        own = [reason for reason in own if reason not in ("", "refusal")]  # a person's prompt may say "sorry"
        faults.append(fault or (own and own[0]) or ("same" if unsafe == safe else "duplicate" if seen else ""))
    found["fault"] = faults
    if request.config.min_similarity is not None and request.encoder:
        good = found.index[found.fault == ""]
        cosine = request.encoder.similarity(list(found.unsafe_prompt[good]), list(found.safe_prompt[good]))
        found.loc[good, "similarity"] = cosine
        found.loc[good[cosine < request.config.min_similarity], "fault"] = "too far"


def _leaks(found: pd.DataFrame, test_path: str | None) -> pd.Series:
    """Whether each unsafe prompt occurs, word for word, among the prompts of a test file."""
    if not test_path:
        return pd.Series(False, index=found.index)
    rows = read_rows(test_path)
    if "prompt" not in rows:
        raise SafetyDPOError(f"{test_path} has no column `prompt`; it has {', '.join(rows.columns)}.")
    return found.unsafe_prompt.str.strip().isin(set(rows.prompt.str.strip()))


def _summary(name: str, found: pd.DataFrame, kept: pd.DataFrame) -> str:
    """`violence: 2240 pairs of 3 concepts, 1 beyond prompts.pairs; 12 rejected (10 duplicate, 2 too long)`."""
    counts = found.fault[found.fault != ""].value_counts()
    concepts, surplus = kept.concept[kept.concept != ""].nunique(), len(found) - len(kept) - int(counts.sum())
    parts = [f"{name}: {len(kept)} pairs" + (f" of {concepts} concepts" if concepts else "")]
    test, leaks = int((kept.split == "test").sum()), int(kept.leak.sum())
    parts += [f"{test} held out"] if test else []
    parts += [f"{leaks} also in the test file"] if leaks else []
    parts += [f"{surplus} beyond prompts.pairs"] if surplus else []
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    return ", ".join(parts) + (f"; {counts.sum()} rejected ({reasons})" if reasons else "")
