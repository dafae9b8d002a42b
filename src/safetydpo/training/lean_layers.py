"""Layers of an adapted, otherwise frozen network in training: the same arithmetic, less time and memory.

torch keeps a convolution's input for the weight's gradient even where the weight is frozen, and PEFT's LoRA is five
operations with an activation kept for each. Both are one autograd function here, with the backward pass written out.
"""

from types import MethodType
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

# Input channels from which a convolution's kept input is worth a call into Python: Stable Diffusion's, not the demo's.
LARGE = 256


class LoraLinear(torch.autograd.Function):
    """y = x W^T + bias + scale x A^T B^T: x (..., in), weight (out, in), lora_a (r, in), lora_b (out, r).

    Computed in the dtype of the frozen weight; the gradients of lora_a and lora_b come in theirs.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        lora_a: torch.Tensor,
        lora_b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        dtype = weight.dtype
        x = x.to(dtype)
        a, b = lora_a.to(dtype), lora_b.to(dtype)
        rows = x.reshape(-1, x.shape[-1])
        inner = torch.mm(rows, a.t())
        y = F.linear(x, weight, bias)
        y.view(-1, y.shape[-1]).addmm_(inner, b.t(), alpha=scale)
        ctx.save_for_backward(rows, inner, weight, a, b)
        ctx.scale, ctx.shape, ctx.dtype = scale, x.shape, lora_a.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        rows, inner, weight, a, b = ctx.saved_tensors
        grad = grads[0].to(weight.dtype).reshape(-1, weight.shape[0])
        grad_inner, grad_b = torch.mm(grad, b), torch.mm(grad.t(), inner)
        if ctx.scale != 1:
            grad_inner, grad_b = grad_inner * ctx.scale, grad_b * ctx.scale
        grad_a = torch.mm(grad_inner.t(), rows)
        grad_x = None
        if ctx.needs_input_grad[0]:  # not for text embeddings
            grad_x = torch.mm(grad, weight).addmm_(grad_inner, a).view(ctx.shape)
        return grad_x, None, None, grad_a.to(ctx.dtype), grad_b.to(ctx.dtype), None


class FrozenConv2d(torch.autograd.Function):
    """A convolution whose weight does not train: nothing of x (b, c, h, w) is kept.

    options: stride, padding, dilation, groups.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, options: tuple[Any, ...]
    ) -> torch.Tensor:
        ctx.save_for_backward(weight)
        ctx.options, ctx.shape, ctx.dtype = options, x.shape, x.dtype
        return F.conv2d(x, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        (weight,) = ctx.saved_tensors
        grad = conv2d_input(ctx.shape, weight, grads[0].to(weight.dtype), *ctx.options)
        return grad.to(ctx.dtype), None, None, None


def _conv(layer: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    options = (layer.stride, layer.padding, layer.dilation, layer.groups)
    return FrozenConv2d.apply(x, layer.weight, layer.bias, options)  # type: ignore[no-any-return]


def _lora(layer: Any, x: torch.Tensor) -> torch.Tensor:
    base = layer.base_layer
    if layer._disable_adapters:
        return base(x)
    a, b, scale = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
    return LoraLinear.apply(x, base.weight, base.bias, a, b, scale)  # type: ignore[no-any-return]


def _compiled_lora(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """The same for a compiler, which chooses itself what to keep; the adapter is multiplied by `strength`, 1 or 0."""
    a, b, scale = layer.lora_A["default"], layer.lora_B["default"], layer.scaling["default"] * layer.strength
    base = layer.base_layer
    if not isinstance(base, nn.Linear):
        return base(x) + b(a(x.to(a.weight.dtype)) * scale).to(x.dtype)
    x = x.to(base.weight.dtype)
    return base(x) + F.linear(F.linear(x, a.weight.to(x.dtype)) * scale, b.weight.to(x.dtype))


def _large_and_frozen(conv: nn.Conv2d) -> bool:
    return conv.in_channels >= LARGE and conv.padding_mode == "zeros" and not conv.weight.requires_grad


def use_lean_layers(network: nn.Module, strength: torch.Tensor | None = None) -> None:
    """Let large frozen convolutions and PEFT's LoRAs on linear layers compute by the functions above.

    A LoRA on a convolution is PEFT's own: its factors are convolutions that train. strength: of a network that is
    compiled, what every LoRA is multiplied by.
    """
    for layer in network.modules():
        if isinstance(layer, BaseTunerLayer) and strength is not None:
            layer.strength = strength
            layer.forward = MethodType(_compiled_lora, layer)
        elif isinstance(layer, BaseTunerLayer):
            plain = isinstance(layer.lora_dropout["default"], nn.Identity)  # type: ignore[index]
            if isinstance(layer.base_layer, nn.Linear) and plain:
                layer.forward = MethodType(_lora, layer)
        elif type(layer) is nn.Conv2d and _large_and_frozen(layer):
            layer.forward = MethodType(_conv, layer)
