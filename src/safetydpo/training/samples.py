"""Which samples a training step sees, and every random choice about them.

Every draw has a key (its place in the endless order, or sample and draw number), so a run is reproducible, independent
of what was drawn before, and the same whether a batch is seen at once, in accumulated parts or by several processes.
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch

from safetydpo.config.training import Train
from safetydpo.features.sets import Features
from safetydpo.storage.records import seed_of
from safetydpo.training.denoiser import Denoiser, Drawn, Noised

# The winner first: `safe` is preferred.
PAIR_ROLES, RETAIN_ROLES = ("safe", "unsafe"), ("image",)
SAFE_SHARE = {"unsafe": 0.0, "safe": 1.0, "both": 0.5}


class Share(NamedTuple):
    """Which part of every batch is this process's."""

    rank: int = 0
    processes: int = 1


class Draw(NamedTuple):
    """A sample and its random choices, all of which follow from `key`; `number` is its place among cached draws."""

    sample: int
    number: int
    key: int


class Samples:
    """A feature set with a seeded endless order; batch_size samples a turn for each process."""

    def __init__(
        self, features: Features, roles: tuple[str, ...], batch_size: int, config: Train, seed: int, share: Share
    ) -> None:
        self.features, self.roles, self.batch_size, self.seed, self.share = features, roles, batch_size, seed, share
        self.name = roles[-1]
        self.epochs: dict[int, list[int]] = {}
        self.draws = config.draws if config.reference == "cached" else 0
        self.flip, self.rendered = config.flip, config.noise == "rendered"
        pairs = roles == PAIR_ROLES
        self.dropout = config.caption_dropout if pairs else 0.0
        self.safe_share = SAFE_SHARE[config.condition] if pairs else 0.0
        self.whole = not pairs  # what is asked of the frozen model: its predictions, or their errors alone

    def anchors(self) -> "Samples":
        """The same draws under the safe prompts (an empty one stays), asked for the frozen model's predictions."""
        anchored = copy.copy(self)
        anchored.name, anchored.safe_share, anchored.whole = "anchor", 1.0, True
        return anchored

    def pick(self, turn: int) -> list[Draw]:
        """This process's part of the `turn`-th batch; epochs are reshuffled, and go on inside a batch."""
        first = self.share.rank * self.batch_size
        return self._batch(turn)[first : first + self.batch_size]

    def _batch(self, turn: int) -> list[Draw]:
        n, whole = len(self.features), self.batch_size * self.share.processes
        drawn = []
        for place in range(turn * whole, (turn + 1) * whole):
            sample, key = self._epoch(place // n)[place % n], seed_of(self.seed, f"place/{place}")
            drawn.append(self.draw(sample, key % self.draws) if self.draws else Draw(sample, 0, key))
        return drawn

    def drawn(self, turns: int) -> list[Draw]:
        """The distinct fixed draws that `turns` turns use, over all processes, in a fixed order."""
        return sorted({draw for turn in range(turns) for draw in self._batch(turn)})

    def ids(self, draws: Sequence[Draw]) -> list[str]:
        """Ids of the draws' samples."""
        return [self.features.ids[draw.sample] for draw in draws]

    def draw(self, sample: int, number: int) -> Draw:
        """One of a sample's fixed draws."""
        return Draw(sample, number, seed_of(self.seed, f"{self.features.ids[sample]}/{number}"))

    def _epoch(self, epoch: int) -> list[int]:
        if epoch not in self.epochs:
            rng = torch.Generator().manual_seed(seed_of(self.seed, f"epoch/{epoch}"))
            kept = {epoch - 1: self.epochs[epoch - 1]} if epoch - 1 in self.epochs else {}
            self.epochs = kept | {epoch: torch.randperm(len(self.features), generator=rng).tolist()}
        return self.epochs[epoch]

    def _coins(self, key: int) -> tuple[str, bool]:
        """The role whose prompt conditions the sample ("": the empty prompt), and whether its images are mirrored."""
        rng = torch.Generator().manual_seed(seed_of(key, "coins"))
        chances = torch.tensor([self.dropout, self.safe_share, self.flip])
        dropped, safe, flipped = (torch.rand(3, generator=rng) < chances).tolist()
        caption = "safe" if safe else self.roles[-1]
        return "" if dropped else caption, flipped

    def inputs(self, denoiser: Denoiser, draws: Sequence[Draw]) -> Drawn:
        """What the batch of these draws is made from. One coin mirrors all images of a sample or none."""
        coins = [self._coins(draw.key) for draw in draws]
        return denoiser.draw(
            self.features,
            self.roles,
            [draw.sample for draw in draws],
            [draw.key for draw in draws],
            captions=[caption for caption, _ in coins],
            flips=[flip for _, flip in coins],
            rendered=self.rendered,
        )

    def noised(self, denoiser: Denoiser, draws: Sequence[Draw]) -> Noised:
        """The batch of these draws, roles stacked."""
        return denoiser.noise(self.inputs(denoiser, draws))
