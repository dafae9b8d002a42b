"""The stage hands an eraser what it needs: the retain prompts of a file too."""

import pandas as pd

from safetydpo.baselines.stage import erase
from safetydpo.baselines.uce import subject_embeddings
from safetydpo.config.baselines import Baselines, Uce
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import read_safetensors, write_parquet

CONCEPTS = ["brulo", "odalo", "gumet"]


def test_uce_preserves_the_retain_prompts_of_a_file(tiny, tmp_path):
    write_parquet(pd.DataFrame({"prompt": ["a blue star"]}), tmp_path / "retain.parquet")
    config, out = Baselines(concepts=CONCEPTS, uce=Uce(preserve_scale=1e5, guide="circle")), tmp_path / "w.safetensors"
    old = dict(load_pipeline(tiny).unet.named_parameters())
    star = subject_embeddings(load_pipeline(tiny), ["a blue star"], tiny)[0]
    moved = []
    for retain in (None, tmp_path / "retain.parquet"):
        erase("uce", tiny, config, 0, tmp_path / "c", out, retain)
        changed = read_safetensors(out)[0]
        moved.append(max(float(((changed[n] - old[n]) @ star).norm()) for n in changed))
    assert moved[1] < 1e-3 < moved[0]
