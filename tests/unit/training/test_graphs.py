"""A training whose passes are replayed is the one whose passes are launched anew.

On a CPU what torch records is stood in for by memory that every replay writes again, which is what can go wrong.
"""

import pytest
import torch
from accelerate.state import AcceleratorState
from tiny import DEVICES, NO_GPU, make_pipeline, samples, train_config

from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import Features
from safetydpo.training.denoiser import Denoiser
from safetydpo.training.graphs import Graphs
from safetydpo.training.samples import RETAIN_ROLES
from safetydpo.training.trainer import Objective, Trainer, make_accelerator


def record(module, places, allow_unused_input, pool):
    """torch.cuda.make_graphed_callables without a GPU: inputs, output and gradients have one place each."""
    parameters = list(module.parameters())
    assert allow_unused_input
    assert pool == "pool"
    out = torch.empty(0)
    grads = [torch.empty_like(p) for p in parameters]

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            nonlocal out
            for place, given in zip(places, inputs, strict=False):
                place.copy_(given)
            with torch.set_grad_enabled(bool(parameters)):
                ctx.made = module(*places)
            out = out if out.numel() else torch.empty_like(ctx.made)
            out.detach().copy_(ctx.made.detach())
            return out.detach()

        @staticmethod
        def backward(ctx, *given):
            for place, grad in zip(grads, torch.autograd.grad(ctx.made, parameters, given[0]), strict=True):
                place.copy_(grad)
            return (*[None] * len(places), *(grad.detach() for grad in grads))

    return lambda *inputs: Replay.apply(*inputs, *parameters)


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    if request.param == "cpu":
        monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
        monkeypatch.setattr(torch.cuda, "make_graphed_callables", record)
    return request.param


def trained(model, features, retain, config, replayed):
    """Log, weights and graphs of a training."""
    denoiser = Denoiser(model, config.mixed_precision)
    denoiser.add_adapter(config, 0)
    denoiser.graphs = Graphs(denoiser.parameters) if replayed else None
    pairs, kept = samples(features, config), retain and samples(retain, config, RETAIN_ROLES, 3)
    AcceleratorState._reset_state(reset_partial_state=True)  # one device a process, says accelerate
    try:
        accelerator = make_accelerator(config, denoiser.device)
        log = Trainer(Objective(denoiser, pairs, kept, config), config.steps, "x", accelerator).fit()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    return log.drop(columns="pairs_per_s"), torch.cat([p.detach().ravel() for p in denoiser.parameters]), denoiser


@pytest.mark.parametrize(
    ("changes", "graphs"),
    [
        ({}, 2),  # with gradient, and the frozen model's
        ({"reference": "cached", "draws": 3}, 2),
        ({"gradient_accumulation_steps": 3}, 2),
        ({"gradient_checkpointing": True}, 2),
        ({"anchor": 5, "preserve": {"weight": 7, "batch_size": 3}}, 2),
        ({"anchor": 5, "preserve": {"weight": 7, "batch_size": 3}, "reference": "cached", "draws": 3}, 3),
    ],
)
def test_it_trains_as_without(device, changes, graphs, tiny, features, harmless):
    model = tiny.model_copy(update={"device": device})
    config = train_config(steps=5, beta=50, caption_dropout=0.3, **changes)
    retain: Features | None = harmless if "preserve" in changes else None
    (log, weights, _), (other, others, denoiser) = (trained(model, features, retain, config, r) for r in (False, True))
    for key in log:
        assert other[key].to_list() == pytest.approx(log[key].to_list(), rel=1e-4, abs=1e-6)
    assert ((weights - others).norm() / weights.norm()).item() < 1e-4
    assert len(denoiser.graphs.recorded) == graphs


def test_what_the_frozen_model_answers_is_kept_when_its_pass_is_replayed(device, tiny, features):
    denoiser = Denoiser(tiny.model_copy(update={"device": device}))
    denoiser.add_adapter(train_config(), 0)
    assert bool(denoiser.graphs) == (device == "cuda")
    denoiser.graphs = Graphs([])
    batches = [denoiser.noised(features, ["safe", "unsafe"], [i], [i]) for i in range(2)]
    first, second = (denoiser.reference(batch) for batch in batches)
    denoiser.graphs = None
    assert torch.allclose(first, denoiser.reference(batches[0]), atol=1e-5)
    assert torch.allclose(second, denoiser.reference(batches[1]), atol=1e-5)


def test_a_network_that_cannot_be_recorded_is_a_sentence(monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: "pool")
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    said = r"train\.cuda_graphs does not work .* \(operation not permitted when stream is capturing\): set it to false"
    with pytest.raises(SafetyDPOError, match=said):
        Graphs([])("policy", lambda x: x, torch.ones(1))


@NO_GPU
def test_several_processes_and_batches_of_other_shapes_are_launched(tiny, tmp_path):
    unlike = make_pipeline(tmp_path / "z", "z-image")
    for model, gpus, replayed in ((tiny, 1, True), (tiny, 2, False), (unlike, 1, False)):
        denoiser = Denoiser(model.model_copy(update={"device": "cuda"}))
        denoiser.add_adapter(train_config(gpus=gpus), 0)
        assert bool(denoiser.graphs) == replayed
