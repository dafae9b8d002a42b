"""Cached references: what the frozen model answers on a fixed set of draws, computed once and used over all epochs.

It trades variety for time: a pair is seen at `train.draws` (timestep, noise, posterior sample, caption, mirroring)
combinations instead of at fresh ones, and each step then saves the reference's forward pass.
"""

import time

import torch
from accelerate import Accelerator

from safetydpo.running.interrupts import Interrupt
from safetydpo.running.progress import progress
from safetydpo.storage.checkpoints import Checkpoints
from safetydpo.storage.finite import finite
from safetydpo.training.denoiser import Denoiser
from safetydpo.training.losses import squared_error
from safetydpo.training.samples import Draw, Samples

SAVE_EVERY = 60.0


def answer(samples: Samples, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """What training compares with: errors (b, 2) of winner and loser, or predictions (b, roles, c, h, w)."""
    found = prediction.float() if samples.whole else squared_error(prediction, target)
    return found.view(len(samples.roles), -1, *found.shape[1:]).transpose(0, 1)


class References:
    """Answers of the frozen model on the fixed draws that `turns` turns use."""

    def __init__(self, samples: Samples, turns: int) -> None:
        shape = (len(samples.roles), *(samples.features.latent_shape if samples.whole else ()))
        self.samples, self.draws = samples, samples.drawn(turns)
        self.row = {draw: i for i, draw in enumerate(self.draws)}
        self.known = torch.zeros(len(self.draws), *shape)

    def remember(
        self,
        denoiser: Denoiser,
        accelerator: Accelerator,
        checkpoints: Checkpoints | None = None,
        interrupt: Interrupt | None = None,
    ) -> None:
        """Run the frozen model over the draws, in batches shared by the processes.

        What is known is saved once a minute, at the end, and when an interrupt ends the job. SafetyDPOError where an
        answer is not finite.
        """
        # no gradients: room for a larger batch, but a compiled network has its graph for the batch of training
        size, share = self.samples.batch_size, accelerator.num_processes
        if not denoiser.compiled:
            size = min(4 * size, len(self.draws))
        rounds = range(0, len(self.draws), size * share)
        state = checkpoints.load(accelerator.is_main_process) if checkpoints else None
        begun = 0
        if state:
            begun, self.known = state[0], state[1]["known"]
        saved = time.monotonic()
        for first in progress(rounds[begun:], "reference", disable=accelerator.process_index > 0):
            mine = self.draws[first + accelerator.process_index * size :][:size] or self.draws[:1]
            answers = accelerator.gather(self._ask(denoiser, mine, size)).cpu()  # type: ignore[union-attr]
            count = min(size * share, len(self.draws) - first)
            there = self.draws[first : first + count]
            whose = f"The frozen model's answers on {', '.join(dict.fromkeys(self.samples.ids(there)))}"
            todo = "check model.id, or set train.mixed_precision to no"
            self.known[first : first + count] = finite(answers[:count], whose, todo)
            begun += 1
            stopped = interrupt is not None and interrupt.agreed(accelerator)
            if begun == len(rounds) or stopped or time.monotonic() - saved > SAVE_EVERY:
                saved = time.monotonic()
                if checkpoints and accelerator.is_main_process:
                    checkpoints.save(begun, {"known": self.known})
            if interrupt is not None and stopped:
                interrupt.end(f"{begun} of {len(rounds)} batches of the reference are kept")

    def _ask(self, denoiser: Denoiser, draws: list[Draw], size: int) -> torch.Tensor:
        """Answers of the frozen model, padded to `size` rows so that processes can exchange them."""
        asked = [*draws, *draws[:1] * (size - len(draws))] if denoiser.one_shape else draws
        batch = self.samples.noised(denoiser, asked)
        answers = answer(self.samples, denoiser.reference(batch), batch.target)
        return torch.cat([answers, answers[:1].expand(size - len(asked), *answers.shape[1:])]).contiguous()

    def recall(self, draws: list[Draw]) -> torch.Tensor:
        """Answers for these draws, (b, ...), on the CPU."""
        return self.known[[self.row[draw] for draw in draws]]
