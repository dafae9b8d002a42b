"""Merging strategies: plain functions from the experts' factors to one LoRA's factors.

All work on the updates B A themselves. Co-Merge and mean stay exact in factored form (rank n * r). ties, dare-ties and
magnitude-prune act on whole updates (with PEFT's primitives) and come back by SVD to that rank; svd is the mean cut to
the experts' own rank. linear is PEFT's: A and B averaged apart, with cross terms.
"""

from pkgutil import resolve_name

import torch
from peft.utils import merge_utils

from safetydpo.merging.coactivation import Wins
from safetydpo.merging.registry import STRATEGIES
from safetydpo.models.lora import Factors, same_modules

Pair = tuple[torch.Tensor, torch.Tensor]


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


def truncate(update: torch.Tensor, rank: int) -> Pair:
    """Best rank-`rank` factors of an update (out, in), singular values shared evenly."""
    u, s, v = torch.linalg.svd(update, full_matrices=False)
    root = s[:rank].sqrt()
    return root[:, None] * v[:rank], u[:, :rank] * root


def co_merge(pairs: list[Pair], wins: torch.Tensor | None, rank: int, density: float) -> Pair:
    del rank, density
    assert wins is not None
    return stack(pairs, winner_masks(wins))


def mean(pairs: list[Pair], wins: torch.Tensor | None, rank: int, density: float) -> Pair:
    del wins, rank, density
    return stack(pairs, [torch.full((b.shape[0],), 1 / len(pairs)) for _, b in pairs])


def linear(pairs: list[Pair], wins: torch.Tensor | None, rank: int, density: float) -> Pair:
    del wins, rank, density
    root = len(pairs) ** -0.5
    return torch.stack([a for a, _ in pairs]).sum(0) * root, torch.stack([b for _, b in pairs]).sum(0) * root


def _updates(pairs: list[Pair]) -> list[torch.Tensor]:
    return [b @ a for a, b in pairs]


def ties(pairs: list[Pair], wins: torch.Tensor | None, rank: int, density: float) -> Pair:
    del wins
    return truncate(merge_utils.ties(_updates(pairs), torch.ones(len(pairs)), density), rank)


def dare_ties(pairs: list[Pair], wins: torch.Tensor | None, rank: int, density: float) -> Pair:
    del wins
    return truncate(merge_utils.dare_ties(_updates(pairs), torch.ones(len(pairs)), density), rank)


def magnitude_prune(pairs: list[Pair], wins: torch.Tensor | None, rank: int, density: float) -> Pair:
    del wins
    return truncate(
        merge_utils.magnitude_prune(_updates(pairs), torch.full((len(pairs),), 1 / len(pairs)), density), rank
    )


def svd(pairs: list[Pair], wins: torch.Tensor | None, rank: int, density: float) -> Pair:
    del wins, density
    return truncate(torch.stack(_updates(pairs)).mean(0), min(rank, pairs[0][0].shape[0]))


def merge(
    strategy: str,
    experts: dict[str, Factors],
    wins: Wins | None = None,
    rank: int = 0,
    density: float = 0.5,
    seed: int = 0,
) -> Factors:
    """Merge experts by a strategy of the registry. rank 0: n * r, exact where the strategy allows; else SVD to `rank`.

    One rank holds for all layers, so it is cut to the smallest layer's dimension where SVD is used.
    """
    torch.manual_seed(seed)  # dare-ties drops at random
    modules, names = same_modules(experts), list(experts)
    sizes = [(m, *experts[names[0]][m]) for m in modules]
    limit = min(min(a.shape[1], b.shape[0]) for _, a, b in sizes)
    full = min(rank or sum(experts[n][modules[0]][0].shape[0] for n in names), limit)
    function, merged = resolve_name(f"safetydpo.merging.{STRATEGIES[strategy].function}"), {}
    for module in modules:
        pairs = [experts[name][module] for name in names]
        a, b = function(pairs, wins[module] if wins else None, full, density)
        merged[module] = truncate(b @ a, full) if rank and a.shape[0] > full else (a, b)
    return merged
