"""Prompt pairs from the demo world's grammar, on its training scenes."""

from dataclasses import replace

import numpy as np
import pandas as pd

from safetydpo.demo.grammar import CONCEPTS, FORMS, TRAINED, caption, scenes_in
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.request import Request, table
from safetydpo.storage.records import seed_of


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
