"""Co-activation statistics for Co-Merge: which expert moves each output unit of each layer most, over many inputs.

SafetyDPO, section 3.3: "analyse which expert has the highest activation for each weight across all inputs; then merge
only the most active weights per expert". An input is one prompt at one timestep; an expert's activation of unit k is
the mean over tokens of |(B A x)_k|, with x the layer's input in the frozen model, the same for all experts.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from safetydpo.models.lora import Factors

Wins = dict[str, torch.Tensor]


def activation(a: torch.Tensor, b: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """|B A x| averaged over tokens: a (r, in), b (out, r), x (n, tokens, in) -> (n, out)."""
    return (x @ a.T @ b.T).abs().mean(1)


def wins_of(activations: torch.Tensor) -> torch.Tensor:
    """How often each expert is the most active: (experts, n, out) -> counts (experts, out); ties go to the first."""
    winner = activations.argmax(0)
    return torch.stack([(winner == i).sum(0) for i in range(len(activations))])


@contextmanager
def activations(
    unet: nn.Module, experts: list[Factors], modules: list[str], take: Callable[[str, torch.Tensor], None]
) -> Iterator[None]:
    """While the block runs the frozen UNet: take(module, activations (experts, n, out)) for every adapted layer."""

    def hook_of(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, args: Any) -> None:
            x = args[0].reshape(args[0].shape[0], -1, args[0].shape[-1]).float()
            pairs = [expert[name] for expert in experts]
            take(name, torch.stack([activation(a.to(x), b.to(x), x) for a, b in pairs]))

        return hook

    handles = [unet.get_submodule(name).register_forward_pre_hook(hook_of(name)) for name in modules]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def counting(unet: nn.Module, experts: list[Factors], modules: list[str]) -> Iterator[Wins]:
    """Count wins in every adapted layer while the block runs the frozen UNet: module -> (experts, out)."""
    wins: Wins = {}

    def take(name: str, found: torch.Tensor) -> None:
        wins[name] = wins.get(name, 0) + wins_of(found).cpu()

    with activations(unet, experts, modules, take):
        yield wins
