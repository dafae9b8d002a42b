"""Training of transformers by flow matching, on what the stages before it wrote."""

import math

import pytest
import torch
from tiny import ROLES, adapted, assert_goes_on, make_pipeline, samples, train_config

from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import Features, read_features
from safetydpo.features.stage import write_features
from safetydpo.images.stage import render_pairs, render_prompts
from safetydpo.models.lora import load_factors
from safetydpo.storage.files import read_parquet, write_parquet
from safetydpo.training.denoiser import Denoiser
from safetydpo.training.losses import squared_error
from safetydpo.training.samples import PAIR_ROLES
from safetydpo.training.stage import train_expert
from safetydpo.training.trainer import Objective, make_accelerator

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["sd3", "z-image"])
def trained_on(request, tmp_path_factory):
    """A model, the folder of three pairs of it and of two harmless images, and their features; the prompts' lengths
    differ, and so do those that Z-Image pads them to.
    """
    folder = tmp_path_factory.mktemp(request.param)
    model = make_pipeline(folder / "p", request.param)
    texts = ("circle", "star, a blue square and a teal ring", "square")
    rows = [
        {"pair_id": f"p{i}", "unsafe_prompt": f"a red {s} and a brulo", "safe_prompt": f"a red {s}"}
        for i, s in enumerate(texts)
    ]
    write_parquet(rows, folder / "prompts.parquet")
    render_pairs(folder / "prompts.parquet", model, 0, 1, 0, folder / "pairs.parquet")
    write_features([str(folder / "pairs.parquet")], folder / "prompts.parquet", ROLES, model, folder / "features")
    rows = [{"prompt_id": f"r{i}", "prompt": f"a {c} ring", "category": "", "seed": i} for i, c in enumerate("xy")]
    write_parquet(rows, folder / "retain.parquet")
    render_prompts(folder / "retain.parquet", model, folder / "images.parquet")
    roles = {"image": ("image", "prompt")}
    write_features([str(folder / "images.parquet")], folder / "retain.parquet", roles, model, folder / "retain")
    return model, folder


@pytest.fixture
def features(trained_on):
    model, folder = trained_on
    return read_features([folder / "features"], model.id)


@pytest.fixture
def make(trained_on):
    """A denoiser with the adapter of a config, whose B is not zero."""

    def made(config):
        denoiser = Denoiser(trained_on[0], sampling=config.timestep_sampling)
        return adapted(denoiser, config)

    return made


@pytest.mark.parametrize("changes", [{}, {"reference": "cached", "timestep_sampling": "uniform", "noise": "rendered"}])
def test_a_new_process_goes_on_bit_identical(make, features, tmp_path, changes):
    config = train_config(checkpoint_every=2, caption_dropout=0.3, **changes)
    assert_goes_on(make, features, config, tmp_path, steps=5, killed_in=3)


def test_gradient_checkpointing_changes_no_gradient(make, features):
    grads = []
    for on in (False, True):
        config = train_config(gradient_checkpointing=on, beta=50)
        denoiser = make(config)
        assert denoiser.network.is_gradient_checkpointing == on
        Objective(denoiser, samples(features, config), None, config).terms(0)["loss"].backward()
        grads.append(torch.cat([p.grad.ravel() for p in denoiser.parameters]))
    assert grads[0].abs().max() > 1e-4
    assert torch.allclose(grads[0], grads[1], rtol=1e-4, atol=1e-6)


def test_cached_references_are_those_of_the_frozen_model_on_the_same_draws(make, features):
    config = train_config(reference="cached", draws=3)
    denoiser, pairs = make(config), samples(features, config)
    objective = Objective(denoiser, pairs, None, config)
    objective.remember(5, make_accelerator(config, CPU))
    exact = Objective(denoiser, samples(features, config), None, config).terms(4)
    for name in ("reference_winner_error", "reference_loser_error"):
        assert objective.terms(4)[name].item() == pytest.approx(exact[name].item(), rel=1e-5)
    draw = pairs.drawn(5)[0]
    batch = pairs.noised(denoiser, [draw])
    errors = squared_error(denoiser.reference(batch), batch.target)
    assert torch.allclose(objective.known[0].recall([draw])[0], errors, rtol=1e-4)


@pytest.mark.parametrize("trained_on", ["z-image"], indirect=True)  # whose prompts have lengths of their own
def test_two_processes_of_batch_b_train_as_one_of_batch_2b(trained_on, tmp_path):
    model, folder = trained_on
    for name, (batch_size, gpus) in {"one": (4, 1), "two": (2, 2)}.items():
        config = train_config(batch_size=batch_size, gpus=gpus, caption_dropout=0.3, beta=50)
        where = {"out": tmp_path / name, "checkpoints": tmp_path / "checkpoints" / name}
        train_expert([str(folder / "features")], None, model, config, steps=2, seed=0, name="ring", **where)
    one, two = (load_factors(tmp_path / name, "transformer") for name in ("one", "two"))
    first, second = (torch.cat([t.ravel() for pair in f.values() for t in pair]) for f in (one, two))
    assert ((first - second).norm() / first.norm()).item() < 1e-3
    logs = [read_parquet(tmp_path / name / "training.parquet") for name in ("one", "two")]
    assert logs[1].grad_norm[0] == pytest.approx(logs[0].grad_norm[0], rel=1e-3)


def test_rendered_noise_trains_pairs_and_retain_sets_that_were_rendered_here(trained_on, tmp_path):
    model, folder = trained_on
    config = train_config(noise="rendered", preserve={"weight": 1, "batch_size": 2})
    where = {"out": tmp_path / "out", "checkpoints": tmp_path / "checkpoints"}
    train_expert([str(folder / "features")], str(folder / "retain"), model, config, steps=2, seed=0, name="x", **where)
    log = read_parquet(tmp_path / "out/training.parquet")
    assert log.preference_loss[0] == pytest.approx(math.log(2), abs=1e-6)
    assert log.preserve_loss[1] > 0 == log.preserve_loss[0]


def test_rendered_noise_of_pairs_that_brought_their_images_is_refused(trained_on, tmp_path):
    model, folder = trained_on
    rows = read_parquet(folder / "pairs.parquet").assign(seed=None)  # as `read_pairs` writes them
    write_parquet(rows, tmp_path / "pairs.parquet")
    write_features([str(tmp_path / "pairs.parquet")], folder / "prompts.parquet", ROLES, model, tmp_path / "features")
    assert read_features([tmp_path / "features"], model.id).seeds is None
    config, where = train_config(noise="rendered"), {"out": tmp_path / "out", "checkpoints": tmp_path / "checkpoints"}
    for paths in ([tmp_path / "features"], [folder / "features", tmp_path / "features"]):
        with pytest.raises(SafetyDPOError, match=r"images that were not rendered here, .*: set train\.noise to fresh"):
            train_expert([str(path) for path in paths], None, model, config, steps=1, seed=0, name="x", **where)


def test_features_of_another_family_are_refused(make, features):
    denoiser = make(train_config())
    denoiser.check(features)
    name = denoiser.family.kind.name
    others = Features(features.ids, features.shards, family="flux")
    with pytest.raises(SafetyDPOError, match=rf"^Features are of a model of family flux, .* is of family {name}:"):
        denoiser.check(others)


def test_features_of_16_bits_train_a_network_of_either_precision(trained_on, tmp_path):
    model, folder = trained_on
    half = model.model_copy(update={"dtype": "bfloat16"})
    pairs = [str(folder / "pairs.parquet")]
    write_features(pairs, folder / "prompts.parquet", ROLES, half, tmp_path / "features")
    features = read_features([tmp_path / "features"], model.id)
    assert features.shards[0]["encoder_hidden_states"].dtype == torch.bfloat16
    assert features.shards[0]["safe_mean"].dtype == torch.float32
    whole = read_features([folder / "features"], model.id)
    assert features.fingerprint != whole.fingerprint
    mine, other = (f.condition([1], ["unsafe"])["encoder_hidden_states"].float() for f in (features, whole))
    assert (mine - other).norm() / other.norm() < 0.03  # bfloat16 has 8 bits of mantissa
    for precision in ("no", "bf16"):
        denoiser = Denoiser(model, precision)
        denoiser.add_adapter(train_config(), 0)
        batch = denoiser.noised(features, PAIR_ROLES, [0, 1], [3, 4])
        model_pred = denoiser.predict(batch)
        assert model_pred.shape == batch.target.shape
        assert model_pred.isfinite().all()
