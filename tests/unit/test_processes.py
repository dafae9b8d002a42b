"""Several processes are one larger batch."""

import pytest
import torch
from tiny import samples, train_config

from safetydpo.feature_sets import read_features
from safetydpo.files import read_parquet
from safetydpo.lora import load_factors
from safetydpo.samples import Share
from safetydpo.train import train_expert

COMMON = {"gradient_accumulation_steps": 2, "caption_dropout": 0.3, "flip": 0.5, "learning_rate": 1e-3}


def test_parts_of_a_batch_are_the_batch(tiny, tiny_features):
    features = read_features([tiny_features / "features.safetensors"], tiny.id)
    for config in (train_config(), train_config(reference="cached", draws=4)):
        whole = samples(features, config, batch_size=4)
        parts = [samples(features, config, batch_size=2, share=Share(rank, 2)) for rank in range(2)]
        for turn in range(5):
            assert parts[0].pick(turn) + parts[1].pick(turn) == whole.pick(turn)
        assert parts[0].drawn(5) == whole.drawn(5) if config.reference == "cached" else True


@pytest.mark.parametrize("reference", ["exact", "cached"])
def test_two_processes_of_batch_b_train_as_one_of_batch_2b(tiny, tiny_features, tmp_path, reference):
    paths = [str(tiny_features / "features.safetensors")]
    sizes = {"one": (4, 1), "two": (2, 2), "less": (2, 1)}
    for name, (batch_size, gpus) in sizes.items():
        config = train_config(**COMMON, batch_size=batch_size, gpus=gpus, reference=reference)
        where = {"out": tmp_path / name, "checkpoints": tmp_path / "checkpoints" / name}
        train_expert(paths, None, tiny, config, steps=4, seed=0, name="ring", **where)
    one, two, less = (torch.cat([b.ravel() for _, b in load_factors(tmp_path / n).values()]) for n in sizes)
    # Adam divides by the gradient's size, so that the rounding of tiny gradients shows
    assert ((one - two).norm() / one.norm()).item() < 5e-3
    assert ((one - less).norm() / one.norm()).item() > 0.2  # another batch is another result
    logs = [read_parquet(tmp_path / name / "training.parquet") for name in ("one", "two")]
    assert logs[1].grad_norm[0] == pytest.approx(logs[0].grad_norm[0], rel=1e-4)
    for column in ("loss", "winner_error", "reference_loser_error", "margin", "grad_norm", "lr"):
        assert logs[1][column].tolist() == pytest.approx(logs[0][column].tolist(), rel=1e-3, abs=1e-5), (
            column
        )  # beta 5000 magnifies
