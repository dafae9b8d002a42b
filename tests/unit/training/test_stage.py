"""`train_expert`: one seed, one result; several processes are one larger batch; what is refused; logs on request."""

import math

import pytest
import torch
from tiny import train_config

from safetydpo.errors import SafetyDPOError
from safetydpo.models.lora import load_factors
from safetydpo.storage.files import read_parquet
from safetydpo.training.stage import train_expert
from safetydpo.training.trainer import make_accelerator

CPU = torch.device("cpu")
COMMON = {"gradient_accumulation_steps": 2, "caption_dropout": 0.3, "flip": 0.5, "learning_rate": 1e-3}


def test_the_same_seed_trains_the_same_expert(tiny, tiny_features, tmp_path):
    paths = [str(tiny_features / "features.safetensors")]
    for name in ("a", "b"):
        where = {"out": tmp_path / name, "checkpoints": tmp_path / "checkpoints"}
        train_expert(paths, None, tiny, train_config(), steps=3, seed=1, name="ring", **where)
        assert not where["checkpoints"].exists()  # done: nothing is kept, no empty folder either
    first, second = load_factors(tmp_path / "a", "unet"), load_factors(tmp_path / "b", "unet")
    assert all(torch.equal(x, y) for m in first for x, y in zip(first[m], second[m], strict=True))
    assert any(b.abs().max() > 0 for _, b in first.values())
    log = read_parquet(tmp_path / "a/training.parquet")
    assert list(log.step) == [0, 1, 2]
    assert log.preference_loss[0] == pytest.approx(math.log(2), abs=1e-6)
    assert "pipe.load_lora_weights" in (tmp_path / "a/README.md").read_text()


@pytest.mark.parametrize("reference", ["exact", "cached"])
def test_two_processes_of_batch_b_train_as_one_of_batch_2b(tiny, tiny_features, tmp_path, reference):
    paths = [str(tiny_features / "features.safetensors")]
    sizes = {"one": (4, 1), "two": (2, 2), "less": (2, 1)}
    for name, (batch_size, gpus) in sizes.items():
        config = train_config(**COMMON, batch_size=batch_size, gpus=gpus, reference=reference)
        where = {"out": tmp_path / name, "checkpoints": tmp_path / "checkpoints" / name}
        train_expert(paths, None, tiny, config, steps=4, seed=0, name="ring", **where)
    one, two, less = (torch.cat([b.ravel() for _, b in load_factors(tmp_path / n, "unet").values()]) for n in sizes)
    first, second = (
        torch.cat([a.ravel() for a, _ in load_factors(tmp_path / n, "unet").values()]) for n in ("one", "two")
    )
    assert ((first - second).norm() / first.norm()).item() < 1e-4
    # B starts at zero, and Adam divides by the gradient's size, so that the rounding of tiny gradients shows in it
    assert ((one - two).norm() / one.norm()).item() < 5e-3
    assert ((one - less).norm() / one.norm()).item() > 0.2  # another batch is another result
    logs = [read_parquet(tmp_path / name / "training.parquet") for name in ("one", "two")]
    assert logs[1].grad_norm[0] == pytest.approx(logs[0].grad_norm[0], rel=1e-4)
    for column in ("loss", "winner_error", "reference_loser_error", "margin", "grad_norm", "lr"):
        assert logs[1][column].tolist() == pytest.approx(logs[0][column].tolist(), rel=1e-3, abs=1e-5), (
            column
        )  # beta 5000 magnifies


def test_half_precision_without_a_gpu_and_missing_mirror_images_are_refused(tiny, tiny_features, tmp_path):
    with pytest.raises(SafetyDPOError, match="fp16 needs a GPU"):
        make_accelerator(train_config(mixed_precision="fp16"), CPU)
    from tiny import ROLES

    from safetydpo.features.stage import write_features

    folder, plain = tiny_features, tmp_path / "plain.safetensors"
    write_features([str(folder / "pairs.parquet")], folder / "prompts.parquet", ROLES, tiny, plain)
    where = {"out": tmp_path / "out", "checkpoints": tmp_path / "checkpoints"}
    with pytest.raises(SafetyDPOError, match=r"has no mirrored images, train.flip wants them"):
        train_expert([str(plain)], None, tiny, train_config(flip=0.5), steps=1, seed=0, name="x", **where)


def test_a_checkpoint_of_another_config_or_of_other_features_is_refused(tiny, tiny_features, tmp_path):
    paths, where = [str(tiny_features / "features.safetensors")], {"out": tmp_path / "o", "checkpoints": tmp_path / "c"}
    config = train_config(checkpoint_every=1)

    def train(changed, paths):
        train_expert(paths, None, tiny, config.model_copy(update=changed), steps=2, seed=0, name="x", **where)

    (tmp_path / "o").write_text("")  # no folder: the training ends at its last step, before it can write
    with pytest.raises(SafetyDPOError, match="Cannot write"):
        train({}, paths)
    with pytest.raises(SafetyDPOError, match=r"was made with train\.beta = 5000\.0, this run has 300"):
        train({"beta": 300}, paths)
    with pytest.raises(SafetyDPOError, match="was made with features = "):
        train({}, paths * 2)
    (tmp_path / "o").unlink()
    train({"checkpoint_every": 7}, paths)
    assert (tmp_path / "o/training.parquet").exists()


def test_tensorboard_on_request(tiny, tiny_features, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config, where = train_config(tensorboard=True), {"out": tmp_path / "experts/x", "checkpoints": tmp_path / "c"}
    paths = [str(tiny_features / "features.safetensors")]
    train_expert(paths, None, tiny, config, steps=3, seed=0, name="x", **where)
    events = EventAccumulator(str(next((tmp_path / "tensorboard").rglob("events*"))))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [0, 1, 2]
    assert events.Scalars("preference_loss")[0].value == pytest.approx(math.log(2), abs=1e-6)
