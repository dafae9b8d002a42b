"""Adversarial rounds: which prompts are attacked, which of those found join the pairs, and under which category."""

import numpy as np
import pandas as pd
import pytest
from attacks_target import Q16
from tiny import make_pipeline

from safetydpo.attacks import hardening
from safetydpo.attacks.stage import write_attacked, write_hardening_pairs
from safetydpo.config.attacks import Harden
from safetydpo.config.judges import Judges
from safetydpo.features.sets import read_features
from safetydpo.features.stage import write_features
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render
from safetydpo.storage.images import read_images, unpng
from safetydpo.storage.records import pair_id, seed_of

# Prompt that was found -> what the judges say of base's image.
SEEN = {
    "a red circle with moss": ("cross", 0.9),
    "a red circle with fern": ("ring", 0.9),
    "a red circle with dune": ("leaf", 0.9),  # flagged, but of no category of the run: its own
    "a red circle with kelp": ("ring", 0.2),
}
ROLES = {role: (f"{role}_image", f"{role}_prompt") for role in ("safe", "unsafe")}


class Eyes:
    """Stands in for the judges."""

    def __init__(self, *_, **__):
        pass

    def look(self, images, prompts):
        return [{"seen_mark": SEEN[prompt][0], "q16": SEEN[prompt][1]} for prompt in prompts]


def pairs_of(folder, category, count):
    rows = {
        "pair_id": [f"{category}-{i}" for i in range(count)],
        "category": category,
        "unsafe_prompt": [f"a red circle with a zorin {i}" for i in range(count)],
        "safe_prompt": [f"a red circle {i}" for i in range(count)],
        "split": ["heldout", *["train"] * (count - 1)],
    }
    pd.DataFrame(rows).to_parquet(folder / f"{category}.parquet")
    return str(folder / f"{category}.parquet")


def found_file(folder, prompts, category="cross"):
    rows = {"prompt_id": [str(i) for i in range(len(prompts))], "prompt": prompts, "category": category}
    rows |= {"original_prompt": "a red circle with a zorin", "safe_prompt": "a red circle", "kind": "unsafe"}
    frame = pd.DataFrame(rows).assign(seed=range(5, 5 + len(prompts)))
    frame.to_parquet(folder / f"found-{category}.parquet")
    return str(folder / f"found-{category}.parquet")


def test_a_round_attacks_the_first_pairs_that_train_with_seeds_of_its_own(tmp_path):
    paths = [pairs_of(tmp_path, "cross", 4), pairs_of(tmp_path, "ring", 2)]
    config = Harden(rounds=2, prompts=2, repeats=2)
    rows = {}
    for number in (1, 2):
        write_attacked(paths, config, number, 0, tmp_path / f"{number}.parquet")
        rows[number] = pd.read_parquet(tmp_path / f"{number}.parquet")
    first = rows[1]
    assert list(first.prompt_id) == [f"{x}/1/{i}" for x in ("cross-1", "cross-2", "ring-1") for i in (0, 1)]
    assert list(first.category) == ["cross"] * 4 + ["ring"] * 2
    assert first.seed[1] == seed_of(0, "harden/cross-1/1/1")
    assert not set(first.seed) & set(rows[2].seed)
    assert list(first.safe_prompt[:2]) == ["a red circle 1"] * 2


@pytest.fixture
def joined(tmp_path, monkeypatch):
    """(model, what was printed and written) of a round that found the four prompts, one of them twice."""
    monkeypatch.setattr(hardening, "Eyes", Eyes)
    model = make_pipeline(tmp_path / "model")
    judges = Judges(panel=[{"judge": "q16", "id": "x", "path": "x"}], verdicts=[Q16], clip_score="x")
    found = {"random-tokens": found_file(tmp_path, [*SEEN, "a red circle with moss", ""])}
    known = pairs_of(tmp_path, "ring", 2)
    outs = {name: str(tmp_path / f"out-{name}.parquet") for name in ("cross", "ring", "grid")}
    config = Harden(rounds=1, pairs=48)
    counts = write_hardening_pairs(found, [known], config, model, judges, answers=tmp_path, seed=0, outs=outs)
    return model, counts, outs


def test_what_base_draws_flagged_joins_the_category_that_it_shows(joined):
    model, counts, outs = joined
    assert counts == {"cross": 2, "ring": 1, "grid": 0}
    cross = read_images(outs["cross"])
    assert set(cross.unsafe_prompt) == {"a red circle with moss", "a red circle with dune"}
    ring = read_images(outs["ring"]).iloc[0]
    assert ring.pair_id == pair_id("ring", "a red circle with fern", "a red circle")
    assert (ring.safe_prompt, ring.source, ring.split, ring.seed) == ("a red circle", "random-tokens", "train", 6)
    drawn = render(load_pipeline(model), [ring.unsafe_prompt, ring.safe_prompt], [6, 6], model)
    for pixels, name in zip(drawn, ("unsafe_image", "safe_image"), strict=True):
        assert np.array_equal(unpng(ring[name]), pixels)


def test_a_category_that_got_none_trains_on_the_others_files_as_before(joined, tmp_path):
    model, _, outs = joined
    for name, path in outs.items():
        write_features([path], path, ROLES, model, tmp_path / f"{name}.safetensors")
    both = read_features([tmp_path / f"{name}.safetensors" for name in ("ring", "grid")], model.id)
    assert len(both) == 1
    assert both.seeds == [6]


def test_of_more_than_asked_for_a_lot_decides_in_any_order():
    rows = [{"pair_id": f"p{i}", "category": "ring" if i % 2 else "cross"} for i in range(20)]
    kept = hardening.chosen(rows, 3, 0)
    assert [row["category"] for row in kept].count("ring") == 3
    assert len(kept) == 6
    assert hardening.chosen(rows[::-1], 3, 0) == kept
    assert hardening.chosen(rows, 3, 1) != kept


def test_prompts_that_are_pairs_already_are_left_out(tmp_path):
    found = {"ring-a-bell": found_file(tmp_path, ["a red circle with a zorin 1", "a red circle with reed"])}
    rows = hardening.found_prompts(found, [pairs_of(tmp_path, "cross", 3)])
    assert list(rows.prompt) == ["a red circle with reed"]
    assert list(rows.attack) == ["ring-a-bell"]


def test_a_round_that_finds_nothing_adds_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(hardening, "Eyes", Eyes)
    outs = {"cross": str(tmp_path / "out.parquet")}
    judges = Judges(panel=[{"judge": "q16", "id": "x", "path": "x"}], verdicts=[Q16], clip_score="x")
    settings = {"answers": tmp_path, "seed": 0, "outs": outs}
    found, model = {"random-tokens": found_file(tmp_path, [""])}, make_pipeline(tmp_path / "model")
    assert write_hardening_pairs(found, [], Harden(rounds=1), model, judges, **settings) == {"cross": 0}
    assert read_images(outs["cross"]).empty
