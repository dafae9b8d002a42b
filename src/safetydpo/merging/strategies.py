"""Merging strategies: plain functions from the experts' factors to one LoRA's factors.

All work on the updates B A themselves. Co-Merge, fusion and mean stay exact in factored form (rank n * r). ties,
dare-ties and magnitude-prune act on whole updates (with PEFT's primitives) and come back by SVD to that rank; svd is
the mean cut to the experts' own rank. linear is PEFT's: A and B averaged apart, with cross terms.

A LoRA on a convolution is merged as its flat factors, A (r, in * k * k) and B (out, r), and gets its shape back.
"""

from pkgutil import resolve_name
from typing import Any, NamedTuple

import torch
from peft.utils import merge_utils

from safetydpo.config.merging import Merge
from safetydpo.merging.fusion import fuse
from safetydpo.merging.registry import STRATEGIES
from safetydpo.models.lora import Factors, Pair, cut, flat, same_modules, shaped_as, truncate, update_of
from safetydpo.storage.finite import finite


class Asked(NamedTuple):
    """Beside a layer's factors: the config, the rank of what is not exact, the layer's statistics if it needs any."""

    config: Merge
    rank: int
    statistics: Any


def stack(pairs: list[Pair], rows: list[torch.Tensor]) -> Pair:
    """Exact factors of sum_i diag(rows_i) B_i A_i: A (n*r, in), B (out, n*r); rows_i (out,) weighs expert i's units."""
    return (
        torch.cat([a for a, _ in pairs]),
        torch.cat([row.to(b)[:, None] * b for (_, b), row in zip(pairs, rows, strict=True)], dim=1),
    )


def winner_masks(wins: torch.Tensor) -> list[torch.Tensor]:
    """Wins (experts, out) -> one 0/1 mask (out,) per expert; each unit belongs to the expert that won most often."""
    winner = wins.argmax(0)
    return [(winner == i).float() for i in range(len(wins))]


def co_merge(pairs: list[Pair], asked: Asked) -> Pair:
    return stack(pairs, winner_masks(asked.statistics))


def fusion(pairs: list[Pair], asked: Asked) -> Pair:
    chosen = asked.config.fusion
    return fuse(torch.cat([b for _, b in pairs], dim=1), asked.statistics, chosen.retain_weight, chosen.ridge)


def mean(pairs: list[Pair], asked: Asked) -> Pair:
    del asked
    return stack(pairs, [torch.full((b.shape[0],), 1 / len(pairs)) for _, b in pairs])


def linear(pairs: list[Pair], asked: Asked) -> Pair:
    del asked
    root = len(pairs) ** -0.5
    return torch.stack([a for a, _ in pairs]).sum(0) * root, torch.stack([b for _, b in pairs]).sum(0) * root


def _updates(pairs: list[Pair]) -> list[torch.Tensor]:
    return [b @ a for a, b in pairs]


def ties(pairs: list[Pair], asked: Asked) -> Pair:
    return truncate(merge_utils.ties(_updates(pairs), torch.ones(len(pairs)), asked.config.density), asked.rank)


def dare_ties(pairs: list[Pair], asked: Asked) -> Pair:
    return truncate(merge_utils.dare_ties(_updates(pairs), torch.ones(len(pairs)), asked.config.density), asked.rank)


def magnitude_prune(pairs: list[Pair], asked: Asked) -> Pair:
    return truncate(
        merge_utils.magnitude_prune(_updates(pairs), torch.full((len(pairs),), 1 / len(pairs)), asked.config.density),
        asked.rank,
    )


def svd(pairs: list[Pair], asked: Asked) -> Pair:
    return cut(mean(pairs, asked), min(asked.rank, pairs[0][0].shape[0]))


def merge(
    strategy: str,
    experts: dict[str, Factors],
    statistics: dict[str, Any] | None = None,
    config: Merge | None = None,
    seed: int = 0,
) -> Factors:
    """Merge experts by a strategy of the registry, to one rank for all layers; statistics: what it needs, by layer.

    `rank` 0: n * r, exact where the strategy allows; else SVD to it. SafetyDPOError where an update is not finite.
    """
    config = config or Merge.model_validate({})
    torch.manual_seed(seed)  # dare-ties drops at random
    modules, names = same_modules(experts), list(experts)
    full = config.rank or sum(experts[n][modules[0]][0].shape[0] for n in names)
    function, merged = resolve_name(f"safetydpo.merging.{STRATEGIES[strategy].function}"), {}
    for module in modules:
        shaped = [experts[name][module] for name in names]
        for name, pair in zip(names, shaped, strict=True):
            finite(update_of(pair), f"Expert {name}, its update of {module}", "lower train.learning_rate")
        asked = Asked(config, full, statistics[module] if statistics else None)
        a, b = function([flat(pair) for pair in shaped], asked)
        merged[module] = shaped_as(cut((a, b), full) if config.rank and a.shape[0] > full else (a, b), shaped[0])
    return merged
