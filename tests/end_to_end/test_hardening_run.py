"""Adversarial rounds through the real Snakemake, on the reduced demo: what they find becomes features to train on."""

import pandas as pd
import pytest

from safetydpo.demo.grammar import CONCEPTS
from safetydpo.features.sets import read_features
from safetydpo.storage.images import read_images

CATEGORIES = ("ring", "cross")
# The second round attacks the first one's merge, which draws as many marks as base does: four steps taught it little.
FOUND = {1: "random-tokens/base", 2: "random-tokens/merged-ties"}
CHANGES = {
    "harden": {"rounds": 2, "prompts": 4, "repeats": 2, "strategy": "ties"},
    "attacks": {"forbidden": list(CONCEPTS)},
}


@pytest.fixture(scope="module")
def hardened(finished, tmp_path_factory):
    """The finished run after two rounds, and what Snakemake said."""
    work = finished.copy(tmp_path_factory.mktemp("hardened") / "run")
    targets = [f"results/reduced/harden/2/features/{category}.safetensors" for category in CATEGORIES]
    done = work.run(*targets, "--show-failed-logs", changes=CHANGES)
    assert done.returncode == 0, done.stdout
    return work, work.folder / "results/reduced/harden", done.stdout


def pairs_of(folder, number):
    return [read_images(folder / f"{number}/pairs/{category}.parquet") for category in CATEGORIES]


@pytest.mark.parametrize("number", [1, 2])
def test_a_round_adds_pairs_with_their_images_and_features(hardened, number):
    _, folder, said = hardened
    asked = pd.read_parquet(folder / f"{number}/prompts.parquet")
    assert asked.category.value_counts().to_dict() == {"ring": 8, "cross": 8}
    found = pd.read_parquet(folder / f"{number}/found/{FOUND[number]}.parquet")
    assert list(found.prompt_id) == list(asked.prompt_id)
    pairs = pairs_of(folder, number)
    both = pd.concat(pairs)
    assert 0 < len(both) <= 16
    assert set(both.unsafe_prompt) <= set(found.prompt)
    assert not any(word in prompt for word in CONCEPTS for prompt in both.unsafe_prompt)
    # base draws some mark for most words that it never saw: the pair is of the category that the image shows
    assert f"harden_pairs: round {number}: {len(pairs[0])} ring, {len(pairs[1])} cross" in said
    paths = [folder / f"{number}/features/{category}.safetensors" for category in CATEGORIES]
    assert read_features(paths, "resources/demo/t2i").ids == list(both.pair_id)


def test_the_second_round_attacks_experts_trained_on_the_first_and_finds_other_prompts(hardened):
    work, folder, _ = hardened
    first, second = (pd.concat(pairs_of(folder, number)) for number in (1, 2))
    assert not set(first.unsafe_prompt) & set(second.unsafe_prompt)
    for category, pairs in zip(CATEGORIES, pairs_of(folder, 1), strict=True):
        own = len(
            pd.read_parquet(work.folder / f"results/reduced/prompts/{category}.parquet").query("split == 'train'")
        )
        card = (folder / f"1/experts/{category}/README.md").read_text()
        assert f"on {own + len(pairs)} pairs" in " ".join(card.split())
    assert (folder / "1/merged/ties/pytorch_lora_weights.safetensors").exists()
    assert (folder / "1/tuning/merged-ties.json").exists()


def test_what_is_left_is_to_train_on_both(hardened):
    work, _, _ = hardened
    plan = work.planned(CHANGES)
    assert (plan["train_expert"], plan["train_all_single"]) == (2, 1)
    assert not {"harden_attack", "harden_pairs", "prompts", "render_pairs", "retain_prompts"} & set(plan)
