"""Co-activation statistics for Co-Merge: which expert moves each output unit of each layer most, over many inputs.

SafetyDPO, section 3.3: "analyse which expert has the highest activation for each weight across all inputs; then merge
only the most active weights per expert". An input is one prompt at one timestep; an expert's activation of unit k is
the mean over tokens (of a convolution: places) of |(B A x)_k|, with x the layer's input in the frozen model, the same
for all experts. All tokens of a layer count, those that pad a text too: of a layer that image and text share, those of
both.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from safetydpo.models.lora import Factors
from safetydpo.storage.finite import finite

Wins = dict[str, torch.Tensor]


def activation(a: torch.Tensor, b: torch.Tensor, x: torch.Tensor, conv: nn.Conv2d | None = None) -> torch.Tensor:
    """|B A x| averaged over tokens: a (r, in), b (out, r), x (n, ..., in) -> (n, out).

    On a convolution, averaged over places: a (r, in, k, k), b (out, r, 1, 1), x (n, in, h, w).
    """
    if conv is not None:
        inner = F.conv2d(x, a, stride=conv.stride, padding=conv.padding).flatten(2).mT
    else:
        inner = x.reshape(len(x), -1, x.shape[-1]) @ a.T
    return (inner @ b.flatten(1).T).abs().mean(1)


def wins_of(activations: torch.Tensor) -> torch.Tensor:
    """How often each expert is the most active: (experts, n, out) -> counts (experts, out); ties go to the first."""
    winner = activations.argmax(0)
    return torch.stack([(winner == i).sum(0) for i in range(len(activations))])


@contextmanager
def watching(
    network: nn.Module, modules: list[str], take: Callable[[str, nn.Module, torch.Tensor], None]
) -> Iterator[None]:
    """While the block runs the network: take(module, layer, its input in float32) for each of the modules."""

    def hook_of(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda layer, args: take(name, layer, args[0].float())

    handles = [network.get_submodule(name).register_forward_pre_hook(hook_of(name)) for name in modules]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def activations(
    network: nn.Module, experts: list[Factors], modules: list[str], take: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """While the block runs the frozen network: take(module, activations (experts, n, out)) for every adapted layer."""

    def compare(name: str, layer: nn.Module, x: torch.Tensor) -> None:
        pairs, conv = [expert[name] for expert in experts], layer if isinstance(layer, nn.Conv2d) else None
        take(name, torch.stack([activation(a.to(x), b.to(x), x, conv) for a, b in pairs]))

    with watching(network, modules, compare):
        yield


@contextmanager
def counting(network: nn.Module, experts: list[Factors], modules: list[str]) -> Iterator[Wins]:
    """Count wins in every adapted layer while the block runs the frozen network: module -> (experts, out)."""
    wins: Wins = {}

    def take(name: str, found: torch.Tensor) -> None:
        finite(found, f"The experts' activations in {name}", "check model.id: the model's own weights may be damaged")
        wins[name] = wins.get(name, 0) + wins_of(found).cpu()

    with activations(network, experts, modules, take):
        yield wins
