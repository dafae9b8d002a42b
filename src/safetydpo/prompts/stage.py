"""Stage 1: concepts and prompt pairs of each category, and the sets of prompts that are rendered by themselves."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from pkgutil import resolve_name

import pandas as pd

from safetydpo.config.evaluation import Benchmark, Tune
from safetydpo.config.prompts import NEAR, Category, Prompts
from safetydpo.config.training import Preserve
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts import demo
from safetydpo.prompts.columns import Source
from safetydpo.prompts.filters import ADVICE, leaks, mark_faults
from safetydpo.prompts.overlap import Near, content_words
from safetydpo.prompts.registry import SOURCES
from safetydpo.prompts.request import Request
from safetydpo.prompts.sets import file_rows, held_out_rows, spread, write_set
from safetydpo.storage.files import made_by, write_parquet
from safetydpo.storage.records import pair_id, plain

MEASURES = ["similarity", "kept", "added"]
COLUMNS = ["pair_id", "category", "concept", "unsafe_prompt", "safe_prompt", "source", "split", "leak", *MEASURES]
REJECTED = ["category", "concept", "unsafe_prompt", "safe_prompt", "source", "reason", "detail", *MEASURES]


def write_concepts(category: Category, config: Prompts, journals: Path | str, out: Path | str) -> None:
    """Write the concepts of a category (category, concept, source), in a Parquet that a person may edit.

    Raises SafetyDPOError when there are none, or the server fails.
    """
    from safetydpo.prompts.concepts import concepts_of  # with its client, which no other job needs

    table, description = concepts_of(category, config, journals)
    write_parquet(table, out, made_by("prompts", category=category.model_dump(), description=description))
    print(f"{category.name}: {len(table)} concepts, {sum(table.source == 'llm')} of them from the language model")


def write_pairs(request: Request, out: Path | str, rejected: Path | str) -> str:
    """Write the pairs of one category, and beside them what was not used, with the reason; returns the summary.

    Raises SafetyDPOError when fewer than prompts.min_pairs are left.
    """
    category, config = request.category, request.config
    found: pd.DataFrame = resolve_name(f"safetydpo.prompts.{SOURCES[config.source].pairs}")(request)
    found = found.assign(category=category.name, source=config.source)
    if not config.written:  # its writer has asked again where a pair had a fault
        mark_faults(found, request)
    found["leak"] = leaks(found, config.test_path)
    if config.drop_leaks:
        found.loc[found.leak & (found.fault == ""), "fault"] = "leak"
    bad = found.fault != ""
    kept = found[~bad].head(config.pairs)
    safe = kept.unsafe_file + "\n" + kept.safe_file if config.brings_images else kept.safe_prompt
    kept = kept.assign(
        pair_id=[pair_id(category.name, u, s) for u, s in zip(kept.unsafe_prompt, safe, strict=True)],
        split=sides(kept.unsafe_prompt, config.test_share, config.near),
    )
    header = made_by("prompts", category=category.model_dump(), config=config.model_dump(), seed=request.seed)
    write_parquet(found[bad].rename(columns={"fault": "reason"})[REJECTED], rejected, header)
    said = _summary(category.name, found, kept)
    print(said)
    if (kept.split == "train").sum() < config.min_pairs:
        raise SafetyDPOError(
            f"Category {said}; at least {config.min_pairs} to train on are wanted (prompts.min_pairs). See {rejected}"
            f"{_advice(found, request)}."
        )
    files = [name for name in ("unsafe_file", "safe_file") if name in kept]
    write_parquet(kept[[*COLUMNS, *files]], out, header)
    return said


def sides(unsafe_prompts: Iterable[str], share: float, threshold: float) -> list[str]:
    """`test` or `train` of each unsafe prompt: that of the first before it whose words overlap by the threshold, of
    those that have a side of their own, by a hash.

    So every concept has about the same share, and rows that are added at the end move no other.
    """
    near: Near[str] = Near(threshold)
    found = []
    for prompt in unsafe_prompts:
        side = near.find(content_words(prompt)) if share else "train"
        if side is None:
            side = "test" if held_out(prompt, share) else "train"
            near.add(side, content_words(prompt))
        found.append(side)
    return found


def held_out(unsafe_prompt: str, share: float) -> bool:
    """The side of an unsafe prompt by itself, whatever its category and concept: a hash of its words."""
    digest = hashlib.sha256(plain(unsafe_prompt).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _advice(found: pd.DataFrame, request: Request) -> str:
    """What to do about the reason for which most pairs are not used."""
    counts = found.fault[found.fault != ""].value_counts()
    if not counts.empty and (advice := ADVICE.get(str(counts.index[0]))):
        return f". Most are `{counts.index[0]}`: {advice}"
    if request.config.written:
        return ", and the log: prompts.llm.token_budget or the concepts may have been used up"
    where = request.config.path or f"source {request.config.source}"
    return f", and check the category's name and `concepts` against {where}"


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


def write_benchmark(
    benchmark: Benchmark,
    n: int | None,
    categories: list[str],
    seed: int,
    out: Path | str,
    pairs: Sequence[str] = (),
    near: float = NEAR,
) -> None:
    """Write a reported benchmark: at most n prompts (null: all that there are), spread over categories.

    For source `split`, pairs: files of prompt pairs; near: overlap of words from which prompts are near duplicates.
    """
    n, seed = benchmark.limit or n, seed if benchmark.seed is None else benchmark.seed
    if benchmark.source == "demo":
        if n is None:
            raise SafetyDPOError(
                f"Benchmark {benchmark.name} of the demo world needs a number of prompts: its `limit`."
            )
        chosen = demo.benchmark(benchmark.name, categories, n, seed)
    elif benchmark.source == "split":
        rows = held_out_rows(pairs, benchmark.kind, near)
        chosen = spread(rows, n or len(rows))
    else:
        todo = f"name the one that is meant in the `column` of benchmark {benchmark.name}"
        source = Source(benchmark.path or "", benchmark.kind, benchmark.column, todo)
        rows = file_rows(source, benchmark.kind, benchmark.row_settings)
        chosen = spread(rows, n or len(rows))
    write_set(chosen, benchmark.name, seed, out, benchmark.images)


def write_retain(preserve: Preserve, seed: int, out: Path | str) -> None:
    """Write the harmless prompts of the preservation term: half without a mark, half with a retained benign mark."""
    if preserve.path:
        rows = spread(file_rows(Source(preserve.path, "benign"), "benign"), preserve.prompts)
    else:
        rows = demo.retain(preserve.prompts, seed)
    write_set(rows, "retain", seed, out)


def write_tuning(tune: Tune, categories: list[str], seed: int, out: Path | str) -> None:
    """Write the prompts that choose the LoRA scale: tuning scenes, trained concepts, retained benign marks."""
    if tune.path:
        rows = file_rows(Source(tune.path), "unsafe")
        rows.loc[rows.category == "", "kind"] = "benign"
        unsafe, benign = rows[rows.kind == "unsafe"], rows[rows.kind == "benign"]
        if len(tune.scales) > 1 and (unsafe.empty or benign.empty):
            raise SafetyDPOError(f"{tune.path} needs unsafe prompts, with a `category`, and benign ones, without.")
        rows = pd.concat([spread(unsafe, tune.unsafe_prompts), benign.head(tune.benign_prompts)])
    else:
        rows = demo.tuning(categories, tune.unsafe_prompts, tune.benign_prompts, seed)
    write_set(rows, "tuning", seed, out)
