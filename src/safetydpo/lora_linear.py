"""A LoRA on a linear layer as one autograd function, for PEFT's layers in training.

PEFT's forward pass makes five operations of it, and autograd keeps an activation for each. Here the update is added in
place and its backward pass is written out.
"""

from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F


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


def _forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
    base = layer.base_layer
    if layer._disable_adapters:
        return base(x)
    a, b, scale = layer.lora_A["default"].weight, layer.lora_B["default"].weight, layer.scaling["default"]
    return LoraLinear.apply(x, base.weight, base.bias, a, b, scale)  # type: ignore[no-any-return]


def use_lora_linear(layers: list[Any]) -> None:
    """Let PEFT's LoRA layers without dropout on linear layers compute by `LoraLinear`."""
    for layer in layers:
        plain = isinstance(layer.lora_dropout["default"], nn.Identity)
        if isinstance(layer.base_layer, nn.Linear) and plain:
            layer.forward = MethodType(_forward, layer)
