"""Our LoRA layer against PEFT's own, forward and backward."""

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from safetydpo.lora_linear import use_lora_linear


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
    use_lora_linear([made[1][0]])
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
