"""Prompts of the demo world's grammar: pairs on its training scenes, benchmarks, retain and tuning prompts."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd

from safetydpo.demo.grammar import CONCEPTS, FORMS, HELD_OUT, OOD_FORMS, TRAINED, caption, scenes_in
from safetydpo.demo.scenes import BENIGN, Scene
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.request import Request, table
from safetydpo.storage.records import seed_of

# Benign marks that the preservation term may see; the others show what happens to things nobody thought of.
RETAINED_BENIGN = ("leaf", "cloud")


def pairs(request: Request) -> pd.DataFrame:
    """Pairs that cycle through the category's concepts, each on a training scene of its own as far as they reach."""
    category, seed = request.category, request.seed
    if category.name not in TRAINED:
        raise SafetyDPOError(f"The demo world has no category {category.name}; it has {', '.join(TRAINED)}.")
    concepts = tuple(category.concepts) or TRAINED[category.name]
    strangers = [c for c in concepts if c not in CONCEPTS or CONCEPTS[c][0] != category.name]
    if strangers:
        known = ", ".join(w for w, (family, _) in CONCEPTS.items() if family == category.name)
        raise SafetyDPOError(
            f"Category {category.name} of the demo world has no concept {strangers[0]}; it has {known}."
        )
    scenes = scenes_in("train")
    rng = np.random.default_rng(seed_of(seed, f"pairs/{category.name}"))
    rows = []
    for turn in range(-(-request.config.pairs // len(scenes))):
        for i, scene in enumerate(rng.permutation(np.array(scenes, dtype=object))):
            concept = concepts[(i + turn) % len(concepts)]
            form = FORMS[int(rng.integers(len(FORMS)))]
            family, ink = CONCEPTS[concept]
            marked = replace(scene, mark=family, ink=ink)
            rows.append((concept, caption(marked, form), caption(scene, form)))
    return table(*map(list, zip(*rows, strict=True)))


def benchmark(name: str, categories: list[str], n: int, seed: int) -> pd.DataFrame:
    """n prompts of one of the demo world's benchmarks, in the columns of `sets`."""
    rng = np.random.default_rng(seed_of(seed, f"benchmark/{name}"))
    match name:
        case "test":
            return _marked("test", _words(TRAINED, categories), FORMS, n, rng)
        case "ood":
            return _marked("test", _words(HELD_OUT, categories), OOD_FORMS, n, rng)
        case "safe":
            return _marked("test", [None], (*FORMS[:1], *OOD_FORMS), n, rng)
        case "benign":
            return _marked("test", list(BENIGN), FORMS, n, rng)
    raise SafetyDPOError(f"The demo world has no benchmark {name}; it has test, ood, safe, benign.")


def retain(count: int, seed: int) -> pd.DataFrame:
    """Harmless prompts for the preservation term: half without a mark, half with a retained benign mark."""
    rng, half = np.random.default_rng(seed_of(seed, "retain")), count // 2
    return pd.concat(
        [
            _marked("train", [None], FORMS, count - half, rng),
            _marked("train", list(RETAINED_BENIGN), FORMS, half, rng),
        ]
    )


def tuning(categories: list[str], unsafe: int, benign: int, seed: int) -> pd.DataFrame:
    """Prompts that choose the LoRA scale: tuning scenes, trained concepts, retained benign marks."""
    rng = np.random.default_rng(seed_of(seed, "tuning"))
    return pd.concat(
        [
            _marked("tuning", _words(TRAINED, categories), FORMS, unsafe, rng),
            _marked("tuning", list(RETAINED_BENIGN), FORMS, benign, rng),
        ]
    )


def _words(table: dict[str, tuple[str, ...]] | dict[str, str], categories: list[str]) -> list[str]:
    """Words of the categories, cycling through categories first so that any prefix is balanced."""
    chosen = [(w,) if isinstance(w, str) else w for c, w in table.items() if c in categories]
    if not chosen:
        raise SafetyDPOError(f"None of the categories {', '.join(categories)} is of the demo world.")
    return [words[i % len(words)] for i in range(max(map(len, chosen))) for words in chosen]


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
