"""A compiled network trains as it does uncompiled, by graphs that are made once.

torch's backend `aot_eager` traces all that inductor gets, and runs it as it is: inductor itself takes minutes for a
network on a CPU. It makes one layer here, where there is a C++ compiler.
"""

import math
import os
import shutil
from functools import partial

import pytest
import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from tiny import adapted, assert_goes_on, fit, make_pipeline, samples, train_config
from torch import nn
from torch._dynamo.utils import counters
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from safetydpo.errors import SafetyDPOError
from safetydpo.models.compiling import CACHE, prepare_compiler
from safetydpo.training import lean_layers
from safetydpo.training.denoiser import Denoiser
from safetydpo.training.samples import RETAIN_ROLES
from safetydpo.training.trainer import Objective, make_accelerator

CPU = torch.device("cpu")
CXX = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A tiny pipeline whose UNet has one level."""
    folder = tmp_path_factory.mktemp("small")
    model = make_pipeline(folder / "p")
    shape = {"block_out_channels": (8,), "layers_per_block": 1, "attention_head_dim": 2, "norm_num_groups": 4}
    kinds = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=8, cross_attention_dim=16, mid_block_type=None, **shape, **kinds)
    unet.save_pretrained(folder / "p/unet")
    return model


@pytest.fixture
def traced(monkeypatch):
    """torch.compile without inductor; its counters are at 0."""
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    yield counters
    torch._dynamo.reset()


def test_it_trains_as_uncompiled_by_one_graph(small, features, traced):
    logs, weights, states = [], [], []
    for compiled in (False, True):
        config = train_config(compile=compiled, caption_dropout=0.3)
        denoiser = Denoiser(small)
        denoiser.add_adapter(config, 0)
        logs.append(fit(denoiser, samples(features, config), None, config, 4))
        weights.append(torch.cat([p.detach().ravel() for p in denoiser.parameters]))
        states.append(denoiser.adapter_state())
    assert logs[1].preference_loss[0] == pytest.approx(math.log(2), abs=1e-6)
    assert logs[1].loss.tolist() == pytest.approx(logs[0].loss.tolist(), rel=1e-2)  # beta 5000 magnifies rounding
    assert ((weights[0] - weights[1]).norm() / weights[0].norm()).item() < 1e-3
    assert states[0].keys() == states[1].keys()
    # the frozen model's pass and the policy's are one graph, in the first step and in the others
    assert (traced["stats"]["unique_graphs"], dict(traced["graph_break"])) == (1, {})


@pytest.mark.parametrize("reference", ["exact", "cached"])
def test_every_term_is_what_it_is_uncompiled_and_no_turn_makes_a_graph(small, features, harmless, traced, reference):
    options = {"reference": reference, "draws": 2, "target_modules": ["to_q", "to_v", "conv1"], "caption_dropout": 0.3}
    options["gradient_checkpointing"] = reference == "exact"
    config = train_config(anchor=5, preserve={"weight": 7, "batch_size": 3}, **options)
    found, grads, graphs = [], [], []
    for compiled in (False, True):
        config = config.model_copy(update={"compile": compiled})
        denoiser = adapted(Denoiser(small), config)
        pairs, retain = samples(features, config), samples(harmless, config, RETAIN_ROLES, 3)
        objective = Objective(denoiser, pairs, retain, config)
        if reference == "cached":
            objective.remember(3, make_accelerator(config, CPU))
        for turn in range(3):
            terms = objective.terms(turn)
            graphs.append(traced["stats"]["unique_graphs"])
        found.append({name: value.item() for name, value in terms.items()})
        terms["loss"].backward()
        grads.append(torch.cat([p.grad.ravel() for p in denoiser.parameters]))
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-5)
    assert ((grads[0] - grads[1]).norm() / grads[0].norm()).item() < 1e-3
    # exact: pairs and retain set together, by both models, and the anchors; cached: also pairs, and the retain set
    assert graphs[3:] == [{"exact": 2, "cached": 3}[reference]] * 3


def test_a_killed_training_goes_on_bit_identical(small, features, tmp_path, traced):
    config = train_config(checkpoint_every=2, compile=True, target_modules=["to_q"])
    assert_goes_on(lambda c: adapted(Denoiser(small), c), features, config, tmp_path, steps=5, killed_in=3)


def test_adapters_are_on_again_after_an_error(small, features):
    denoiser = adapted(Denoiser(small), train_config(compile=True))

    def fail():
        with denoiser.without_adapters():
            assert denoiser.strength == 0
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert denoiser.strength == 1


@CXX
def test_inductor_makes_the_layers_that_they_are(monkeypatch):
    monkeypatch.setattr(lean_layers, "LARGE", 4)
    results = []
    for compiled in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(2), nn.Linear(16, 5)).requires_grad_(False)
        net = inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6, target_modules=["2"]), net)
        nn.init.normal_(net[2].lora_B["default"].weight)
        lean_layers.use_lean_layers(net, torch.ones(()) if compiled else None)
        run = torch.compile(net, dynamic=False) if compiled else net
        y = run(x := torch.randn(2, 4, 6, 6, requires_grad=True))
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad for p in net.parameters() if p.requires_grad)])
    for mine, other in zip(*results, strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-5)


@CXX
def test_what_was_compiled_is_kept_in_the_users_cache(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, default_cache_dir())  # where torch puts it by itself
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    prepare_compiler(tiny, CPU, "train.compile")
    assert os.environ[CACHE] == str(tmp_path / "safetydpo/inductor")
    assert list((tmp_path / "safetydpo/inductor").rglob("*.so"))
    monkeypatch.setenv(CACHE, str(tmp_path / "mine"))
    prepare_compiler(tiny, CPU, "train.compile")
    assert os.environ[CACHE] == str(tmp_path / "mine")


def test_where_it_cannot_work_it_is_said_in_a_sentence(tiny, tmp_path, monkeypatch):
    def none(*_, **__):
        raise RuntimeError("No working C++ compiler found\nmore")

    monkeypatch.setattr(torch, "compile", none)
    said = r"train\.compile does not work here \(No working C\+\+ compiler found\): it needs a C\+\+ compiler"
    with pytest.raises(SafetyDPOError, match=said):
        prepare_compiler(tiny, CPU, "train.compile")
    with pytest.raises(SafetyDPOError, match=r"prompts of .* have lengths of their own: set it to false"):
        prepare_compiler(make_pipeline(tmp_path / "z", "z-image"), CPU, "train.compile")
