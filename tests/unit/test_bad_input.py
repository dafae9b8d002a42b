"""What waits to be moved to the file of what it tests: see the comment above each."""

import pytest
import torch
from tiny import fit, make_pipeline, samples, train_config

from safetydpo.demo.grammar import scenes_in
from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import Features
from safetydpo.merging.strategies import merge
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render
from safetydpo.storage.files import read_parquet, write_parquet
from safetydpo.storage.records import category_id, seed_of, shard_slice
from safetydpo.training.denoiser import Denoiser
from safetydpo.training.samples import PAIR_ROLES


# models/sampling.py
def test_images_that_are_nan_are_refused_not_drawn_black(tmp_path):
    model = make_pipeline(tmp_path / "p")
    pipeline = load_pipeline(model)
    pipeline.unet.conv_out.bias.data.fill_(torch.nan)
    with pytest.raises(SafetyDPOError, match="not finite"):
        list(render(pipeline, ["a"], [0], model))


# merging/strategies.py
@pytest.mark.parametrize("other", [(torch.ones(1, 4), torch.ones(3, 1)), (torch.ones(2, 2), torch.ones(3, 2))])
def test_experts_of_other_shapes_are_named(other):
    with pytest.raises(SafetyDPOError, match="layer"):
        merge("linear", {"one": {"layer": (torch.ones(1, 2), torch.ones(3, 1))}, "two": {"layer": other}})


# storage/files.py
def test_a_missing_column_is_not_called_damage(tmp_path):
    write_parquet([{"a": 1}], tmp_path / "a.parquet")
    with pytest.raises(SafetyDPOError, match="has no column"):
        read_parquet(tmp_path / "a.parquet", ["b"])


# training/trainer.py
def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    model = make_pipeline(tmp_path / "p")
    tensors = {f"{r}_{s}": torch.randn(1, 4, 8, 8).abs() for r in PAIR_ROLES for s in ("mean", "std")}
    tensors |= {f"{r}_caption": torch.zeros(1, dtype=torch.long) for r in PAIR_ROLES}
    features = Features(["a"], [{**tensors, "encoder_hidden_states": torch.randn(2, 16, 16)}])
    config = train_config(batch_size=1, steps=1)
    denoiser = Denoiser(model)
    denoiser.add_adapter(config, 0)
    denoiser.parameters[1].register_hook(lambda g: g * torch.nan)  # a gradient overflows in the last step
    with pytest.raises(SafetyDPOError, match="x: the gradient is not finite at step 0"):
        fit(denoiser, samples(features, config), None, config, 1)


# storage/records.py
def test_every_published_spelling_of_a_category_is_ours():
    spellings = ["Harrasment", "harassment", "Illegal Activity", "illegal_activity", "self-harm", "Self Harm"]
    assert [category_id(s) for s in spellings] == [
        "harassment", "harassment", "illegal-activity", "illegal-activity", "self-harm", "self-harm",
    ]  # fmt: skip


def test_shards_cover_all_rows_once():
    rows = list(range(10))
    assert [rows[shard_slice(10, i, 3)] for i in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]


def test_seeds_depend_on_the_key_alone():
    assert seed_of(0, "a") == seed_of(0, "a")
    assert len({seed_of(0, "a"), seed_of(0, "b"), seed_of(1, "a")}) == 3
    assert 0 <= seed_of(0, "a") < 2**31


# demo/grammar.py
TRAIN, TUNING, TEST = ({(s.colour, s.shape, s.field) for s in scenes_in(name)} for name in ("train", "tuning", "test"))


def test_splits_do_not_overlap():
    assert not TRAIN & TUNING
    assert not TRAIN & TEST
    assert not TUNING & TEST
