"""Sets of prompts that are rendered by themselves: benchmarks to report on, retain prompts, tuning prompts.

A set is a Parquet with prompt_id, prompt, category, kind (unsafe | safe | benign), seed, expected: `expected` is JSON
with the attributes that a detector should see, where the source knows them (the demo world does).
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from safetydpo.config.evaluation import Benchmark, Tune
from safetydpo.config.training import Preserve
from safetydpo.demo.grammar import CONCEPTS, FORMS, HELD_OUT, OOD_FORMS, TRAINED, caption, scenes_in
from safetydpo.demo.scenes import BENIGN, Scene
from safetydpo.errors import SafetyDPOError
from safetydpo.storage.files import made_by, read_parquet, read_rows, write_parquet
from safetydpo.storage.records import SEEDS, category_id, plain, seed_of

COLUMNS = ["prompt_id", "prompt", "category", "kind", "seed", "expected"]
# Benign marks that the preservation term may see; the others show what happens to things nobody thought of.
RETAINED_BENIGN = ("leaf", "cloud")


def write_benchmark(
    benchmark: Benchmark, n: int, categories: list[str], seed: int, out: Path | str, pairs: Sequence[str] = ()
) -> None:
    """Write a reported benchmark: at most n prompts, spread over categories.

    pairs: files of prompt pairs, for source `split`.
    """
    n, seed = benchmark.limit or n, seed if benchmark.seed is None else benchmark.seed
    if benchmark.source == "demo":
        rows = _demo_benchmark(benchmark, categories, n, seed)
    elif benchmark.source == "split":
        rows = _held_out(pairs, benchmark.kind)
    else:
        rows = _file_rows(benchmark.path or "", benchmark.kind)
    chosen = rows.head(n) if benchmark.source == "demo" else _spread(rows, n)
    _write(chosen, benchmark.name, seed, out, benchmark.images)


def write_retain(preserve: Preserve, seed: int, out: Path | str) -> None:
    """Write the harmless prompts of the preservation term: half without a mark, half with a retained benign mark."""
    if preserve.path:
        rows = _file_rows(preserve.path, "benign").head(preserve.prompts)
    else:
        rng = np.random.default_rng(seed_of(seed, "retain"))
        half = preserve.prompts // 2
        rows = pd.concat(
            [
                _marked("train", [None], FORMS, preserve.prompts - half, rng),
                _marked("train", list(RETAINED_BENIGN), FORMS, half, rng),
            ]
        )
    _write(rows, "retain", seed, out)


def write_tuning(tune: Tune, categories: list[str], seed: int, out: Path | str) -> None:
    """Write the prompts that choose the LoRA scale: tuning scenes, trained concepts, retained benign marks."""
    if tune.path:
        rows = _file_rows(tune.path, "unsafe")
        rows.loc[rows.category == "", "kind"] = "benign"
        unsafe, benign = rows[rows.kind == "unsafe"], rows[rows.kind == "benign"]
        if len(tune.scales) > 1 and (unsafe.empty or benign.empty):
            raise SafetyDPOError(f"{tune.path} needs unsafe prompts, with a `category`, and benign ones, without.")
        rows = pd.concat([_spread(unsafe, tune.unsafe_prompts), benign.head(tune.benign_prompts)])
    else:
        rng = np.random.default_rng(seed_of(seed, "tuning"))
        concepts = _words(TRAINED, categories)
        rows = pd.concat(
            [
                _marked("tuning", concepts, FORMS, tune.unsafe_prompts, rng),
                _marked("tuning", list(RETAINED_BENIGN), FORMS, tune.benign_prompts, rng),
            ]
        )
    _write(rows, "tuning", seed, out)


def _words(table: dict[str, tuple[str, ...]] | dict[str, str], categories: list[str]) -> list[str]:
    """Words of the categories, cycling through categories first so that any prefix is balanced."""
    chosen = [(w,) if isinstance(w, str) else w for c, w in table.items() if c in categories]
    if not chosen:
        raise SafetyDPOError(f"None of the categories {', '.join(categories)} is of the demo world.")
    return [words[i % len(words)] for i in range(max(map(len, chosen))) for words in chosen]


def _demo_benchmark(benchmark: Benchmark, categories: list[str], n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed_of(seed, f"benchmark/{benchmark.name}"))
    match benchmark.name:
        case "test":
            return _marked("test", _words(TRAINED, categories), FORMS, n, rng)
        case "ood":
            return _marked("test", _words(HELD_OUT, categories), OOD_FORMS, n, rng)
        case "safe":
            return _marked("test", [None], (*FORMS[:1], *OOD_FORMS), n, rng)
        case "benign":
            return _marked("test", list(BENIGN), FORMS, n, rng)
    raise SafetyDPOError(f"The demo world has no benchmark {benchmark.name}; it has test, ood, safe, benign.")


def _marked(
    split: str, words: list[str] | list[None], forms: tuple[str, ...], n: int, rng: np.random.Generator
) -> pd.DataFrame:
    """n prompts that cycle through `words` and, shuffled, through the scenes of a split."""
    scenes, rows, order = scenes_in(split), [], []
    for i in range(n):
        order = order or [int(k) for k in rng.permutation(len(scenes))]
        scene, word = scenes[order.pop()], words[i % len(words)]
        marked = _with_mark(scene, word)
        expected = {"colour": scene.colour, "shape": scene.shape, "field": scene.field}
        if word in CONCEPTS:
            category, kind = CONCEPTS[word][0], "unsafe"
        else:
            expected["mark"] = word or "none"
            category, kind = (word, "benign") if word else ("safe", "safe")
        prompt = caption(marked, forms[int(rng.integers(len(forms)))])
        rows.append({"prompt": prompt, "category": category, "kind": kind, "expected": json.dumps(expected)})
    return pd.DataFrame(rows)


def _with_mark(scene: Scene, word: str | None) -> Scene:
    if word in CONCEPTS:
        family, ink = CONCEPTS[word]
        return replace(scene, mark=family, ink=ink)
    return replace(scene, mark=word)


def _file_rows(path: str, kind: str) -> pd.DataFrame:
    """Rows of a csv or Parquet with `prompt`, perhaps category and seed, as CoProV2, I2P and COCO have them.

    A prompt of several categories (I2P's `categories`) has them joined by "|".
    """
    rows = read_rows(path)
    if "prompt" not in rows:
        raise SafetyDPOError(f"{path} has no column `prompt`; it has {', '.join(rows.columns)}.")
    blank = rows.prompt.str.strip() == ""
    if blank.any():
        print(f"{path}: {int(blank.sum())} blank prompts skipped")
    rows = rows[~blank].reset_index(drop=True)
    if rows.empty:
        raise SafetyDPOError(f"{path} has no prompt in its column `prompt`.")
    out = pd.DataFrame({"prompt": rows.prompt, "kind": kind, "expected": "{}"})
    if "category" in rows:
        out["category"] = rows.category.map(category_id)
    elif "categories" in rows:
        out["category"] = ["|".join(category_id(name) for name in names.split(",")) for names in rows.categories]
    else:
        out["category"] = kind
    if column := next((name for name in SEEDS if name in rows), None):
        out["seed"] = pd.Series([_seed(value, path) for value in rows[column]], dtype=object)
    out.attrs = {"read": len(blank), "blank": int(blank.sum())}
    return out


def _held_out(paths: Sequence[str], kind: str) -> pd.DataFrame:
    """Prompts of the pairs held out of training, each once; none that trains, as an unsafe or as a safe prompt."""
    pairs = pd.concat([read_parquet(path) for path in paths], ignore_index=True)
    train, test = pairs[pairs.split == "train"], pairs[pairs.split == "test"]
    rows = pd.DataFrame({"prompt": test[f"{kind}_prompt"], "category": test.category, "kind": kind, "expected": "{}"})
    trained = {plain(prompt) for prompt in [*train.unsafe_prompt, *train.safe_prompt]}
    same = rows.prompt.map(plain)
    rows = rows[~same.isin(trained) & ~same.duplicated()].reset_index(drop=True)
    print(f"{len(test)} pairs held out of training, {len(test) - len(rows)} of them repeated or a training prompt")
    if rows.empty:
        raise SafetyDPOError("No pair is held out of training: raise prompts.test_share or prompts.pairs.")
    return rows


def _seed(value: str, path: str) -> int | None:
    """A seed as the file gives it; None (to be assigned) where it is blank."""
    try:
        return int(value) if value.strip() else None
    except ValueError:
        raise SafetyDPOError(f"{path} has the seed {value!r}: it must be a whole number or blank.") from None


def _spread(rows: pd.DataFrame, n: int) -> pd.DataFrame:
    """At most n rows, one of each category in turn: the first rows are of all categories, whatever the file's order."""
    rank = rows.groupby("category").cumcount()
    return rows.assign(rank=rank).sort_values("rank", kind="stable").head(n).drop(columns="rank")


def _write(rows: pd.DataFrame, name: str, seed: int, out: Path | str, images: int = 1) -> None:
    """images: rows per prompt; the first has the prompt's own seed."""
    counts = {"read": len(rows), **rows.attrs, "used": len(rows)}
    rows = rows.reset_index(drop=True)
    rows["prompt_id"] = [f"{name}-{i:05d}" for i in range(len(rows))]
    if images > 1:
        more = [rows.assign(prompt_id=rows.prompt_id + f"-{k}", seed=None) for k in range(1, images)]
        rows = pd.concat([rows, *more]).sort_values("prompt_id", kind="stable", ignore_index=True)
    given = rows["seed"] if "seed" in rows else [None] * len(rows)
    rows["seed"] = [
        seed_of(seed, key) if pd.isna(value) else int(value) for key, value in zip(rows.prompt_id, given, strict=True)
    ]
    write_parquet(rows[COLUMNS], out, made_by("benchmark", name=name, seed=seed, counts=counts))
    each = f", {images} images each" if images > 1 else ""
    print(f"{name}: {counts}{each}; {rows.category.str.split('|').explode().nunique()} categories")
