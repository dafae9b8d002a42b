"""Our layers against PEFT's and torch's own, forward and backward."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from tiny import make_pipeline, train_config
from torch import nn

from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.text_encoder import encode_prompts
from safetydpo.training import denoiser as module
from safetydpo.training.denoiser import Denoiser, Noised
from safetydpo.training.lean_layers import LARGE, use_lean_layers


def layers(dtype=torch.float32, **options):
    """A PEFT LoRA on one linear layer, and the same with our forward; alpha / rank = 3."""
    made = []
    for _ in range(2):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 5)).to(dtype)
        net.requires_grad_(False)
        net = inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6, target_modules=["0"], **options), net)
        for factor in (net[0].lora_A, net[0].lora_B):
            factor["default"].float()
        nn.init.normal_(net[0].lora_B["default"].weight)
        made.append(net)
    use_lean_layers(made[1])
    return made


def run(net, x):
    y = net(x)
    (y.float() ** 2).sum().backward()
    layer = net[0]
    return y.detach(), x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad


def test_values_and_gradients_are_pefts():
    x = torch.randn(3, 4, 6)
    theirs, ours = (run(net, x.clone().requires_grad_()) for net in layers())
    for mine, other in zip(ours, theirs, strict=True):
        assert torch.allclose(mine, other, atol=1e-5)


def test_in_bfloat16_the_adapter_stays_fp32_and_agrees_with_fp32():
    x = torch.randn(3, 4, 6)
    exact, ours = layers()[0], layers(torch.bfloat16)[1]
    found = run(ours, x.bfloat16().requires_grad_())
    expected = run(exact, x.clone().requires_grad_())
    assert [t.dtype for t in found] == [torch.bfloat16, torch.bfloat16, torch.float32, torch.float32]
    for mine, other in zip(found, expected, strict=True):  # bfloat16 has 8 bits of mantissa
        assert ((mine.float() - other).norm() / other.norm()).item() < 0.02


def test_inputs_without_gradient_and_switched_off_adapters():
    theirs, ours = layers()
    x = torch.randn(3, 4, 6)
    assert run(ours, x)[1] is None
    assert torch.allclose(run(theirs, x)[3], run(ours, x)[3] / 2, atol=1e-5)  # the second call adds to the first
    ours[0]._disable_adapters = True
    assert torch.equal(ours(x), ours[0].base_layer(x))


def test_a_zero_b_changes_no_bit():
    ours = layers()[1]
    nn.init.zeros_(ours[0].lora_B["default"].weight)
    x = torch.randn(3, 4, 6)
    assert torch.equal(ours(x), ours[0].base_layer(x))


@pytest.mark.parametrize("options", [{"lora_dropout": 0.5}])
def test_dropout_stays_pefts(options):
    theirs, ours = layers(**options)
    torch.manual_seed(1)
    x = torch.randn(3, 4, 6)
    torch.manual_seed(1)
    first = theirs(x)
    torch.manual_seed(1)
    assert torch.equal(first, ours(x))


@pytest.mark.parametrize(
    "options", [{"kernel_size": 3, "padding": 1}, {"kernel_size": 3, "stride": 2}, {"kernel_size": 1}]
)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_frozen_convolution_is_torchs(options, memory_format, dtype):
    torch.manual_seed(0)
    conv = nn.Conv2d(LARGE, 4, **options).requires_grad_(False).to(dtype, memory_format=memory_format)
    x = torch.randn(2, LARGE, 7, 6).to(dtype, memory_format=memory_format)
    results = []
    for lean in (False, True):
        if lean:
            use_lean_layers(conv)
            assert "forward" in vars(conv)
        y = conv(leaf := x.clone().requires_grad_())
        y.square().sum().backward()
        results.append((y.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1], rtol=1e-2 if dtype == torch.bfloat16 else 1e-5)


@pytest.mark.parametrize("options", [{"kernel_size": 1}, {"kernel_size": 3, "padding": 1, "stride": 2}])
def test_a_lora_on_a_large_convolution_trains_as_pefts(options):
    found = []
    for lean in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(LARGE, 4, **options)).requires_grad_(False)
        net = inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6, target_modules=["0"]), net)
        nn.init.normal_(net[0].lora_B["default"].weight)
        if lean:
            use_lean_layers(net)
        found.append(run(net, torch.randn(2, LARGE, 5, 5, requires_grad=True)))
        assert ("forward" in vars(net[0].base_layer)) == lean  # frozen under the LoRA
    for mine, other in zip(*found, strict=True):
        assert torch.allclose(mine, other, rtol=1e-4, atol=1e-4)
        assert mine.any()


def test_a_frozen_convolution_keeps_no_input_and_a_small_one_is_left_alone():
    conv, small = nn.Conv2d(LARGE, 4, 1).requires_grad_(False), nn.Conv2d(LARGE - 1, 4, 1).requires_grad_(False)
    use_lean_layers(nn.ModuleList([conv, small]))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        conv(torch.randn(2, LARGE, 5, 5, requires_grad=True))
        assert kept == [conv.weight.shape]
        small(torch.randn(2, LARGE - 1, 5, 5, requires_grad=True))
    assert (2, LARGE - 1, 5, 5) in kept


@pytest.fixture(scope="module", params=["sd3-t5", "flux-dev", "z-image"])
def transformer(request, tmp_path_factory):
    """A transformer's model section, and a batch of two prompts for it."""
    model = make_pipeline(tmp_path_factory.mktemp("model"), request.param)
    pipeline = load_pipeline(model)
    channels = pipeline.family.latent_channels(pipeline.transformer.config)
    latents = torch.randn(2, channels, 8, 8, generator=torch.Generator().manual_seed(0))
    condition = encode_prompts(pipeline, ["a red circle", "a blue star"], model)
    return model, Noised(latents, torch.tensor([300.0, 700.0]), torch.zeros_like(latents), condition)


def test_every_layer_of_a_transformer_is_lean_and_trains_as_pefts(transformer, monkeypatch):
    """Its attention gives some of them slices of one tensor: image tokens, text tokens."""
    model, batch = transformer
    found = []
    for lean in (False, True):
        monkeypatch.setattr(module, "use_lean_layers", use_lean_layers if lean else lambda network, strength: None)
        denoiser = Denoiser(model)
        denoiser.add_adapter(train_config(alpha=6, target_modules=None), 0)
        assert {"forward" in vars(layer) for layer in denoiser._layers} == {lean}
        torch.manual_seed(1)
        for name, parameter in denoiser.network.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.3)
        model_pred = denoiser.predict(batch)
        model_pred.square().sum().backward()
        found.append([model_pred.detach(), *(parameter.grad for parameter in denoiser.parameters)])
    for mine, other in zip(*found, strict=True):
        assert torch.allclose(mine, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))
    assert sum(not values.any() for values in found[0]) <= 2  # the queries of the last text tokens of SD3 reach nothing


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_fresh_adapter_changes_no_bit_of_a_transformer(transformer, precision):
    """In bfloat16 torch rounds a bias once where a layer's input is contiguous, twice where it is a slice."""
    model, batch = transformer
    denoiser = Denoiser(model, precision)
    denoiser.add_adapter(train_config(target_modules=None), 0)
    assert torch.equal(denoiser.predict(batch).detach(), denoiser.reference(batch))
