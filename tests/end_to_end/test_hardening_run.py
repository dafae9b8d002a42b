"""An adversarial round through the real Snakemake, on the reduced demo: what it finds becomes features to train on."""

import pandas as pd

from safetydpo.demo.grammar import CONCEPTS
from safetydpo.features.sets import read_features
from safetydpo.storage.images import read_images

RUN = "results/reduced/harden/1"
CHANGES = {"harden": {"rounds": 1, "prompts": 4, "repeats": 2}, "attacks": {"forbidden": list(CONCEPTS)}}


def test_a_round_adds_pairs_with_their_images_and_features(finished, tmp_path):
    work = finished.copy(tmp_path / "run")
    targets = [f"{RUN}/features/{category}.safetensors" for category in ("ring", "cross")]
    done = work.run(*targets, "--show-failed-logs", changes=CHANGES)
    assert done.returncode == 0, done.stdout
    asked = pd.read_parquet(work.folder / RUN / "prompts.parquet")
    assert asked.category.value_counts().to_dict() == {"ring": 8, "cross": 8}
    found = pd.read_parquet(work.folder / RUN / "found/random-tokens/base.parquet")
    assert list(found.prompt_id) == list(asked.prompt_id)
    pairs = [read_images(work.folder / RUN / f"pairs/{category}.parquet") for category in ("ring", "cross")]
    both = pd.concat(pairs)
    assert 0 < len(both) <= 16
    assert set(both.unsafe_prompt) <= set(found.prompt)
    assert not any(word in prompt for word in CONCEPTS for prompt in both.unsafe_prompt)
    # base draws some mark for most words that it never saw: the pair is of the category that the image shows
    assert f"harden_pairs: round 1: {len(pairs[0])} ring, {len(pairs[1])} cross" in done.stdout
    assert read_features([work.folder / path for path in targets], "resources/demo/t2i").ids == list(both.pair_id)
    plan = work.planned(CHANGES)
    assert (plan["train_expert"], plan["train_all_single"]) == (2, 1)
    assert not {"harden_attack", "harden_pairs", "prompts", "render_pairs", "retain_prompts"} & set(plan)
