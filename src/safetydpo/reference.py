"""Cached references: what the frozen model answers on a fixed set of draws, computed once and used over all epochs.

It trades variety for time: a pair is seen at `train.draws` (timestep, noise, posterior sample, caption, mirroring)
combinations instead of at fresh ones, and each step then saves the reference's forward pass.
"""

import time

import torch
from accelerate import Accelerator

from safetydpo.checkpoints import Checkpoints
from safetydpo.denoiser import Denoiser
from safetydpo.interrupts import Interrupt
from safetydpo.losses import squared_error
from safetydpo.progress import progress
from safetydpo.samples import PAIR_ROLES, Draw, Samples

SAVE_EVERY = 60.0


def answer(samples: Samples, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """What training compares with: errors (b, 2) of winner and loser for pairs, whole predictions for retain sets."""
    if samples.roles != PAIR_ROLES:
        return prediction.float()
    return squared_error(prediction, target).view(len(PAIR_ROLES), -1).T


class References:
    """Answers of the frozen model by (sample, draw number); NaN where no step asks."""

    def __init__(self, samples: Samples) -> None:
        shape = (len(PAIR_ROLES),) if samples.roles == PAIR_ROLES else tuple(samples.features.latent_shape)
        self.samples = samples
        self.known = torch.full((len(samples.features), samples.draws, *shape), torch.nan)

    def remember(
        self,
        denoiser: Denoiser,
        turns: int,
        accelerator: Accelerator,
        checkpoints: Checkpoints | None = None,
        interrupt: Interrupt | None = None,
    ) -> None:
        """Run the frozen model over the draws that `turns` turns use, in batches shared by the processes.

        What is known is saved once a minute, at the end, and when an interrupt ends the job.
        """
        size = 4 * self.samples.batch_size  # no gradients: room for more than training's batch
        draws = self.samples.drawn(turns)
        batches = [draws[i : i + size] for i in range(0, len(draws), size)]
        rounds = range(0, len(batches), accelerator.num_processes)
        begun, state = 0, checkpoints.load() if checkpoints else None
        if state:
            begun, self.known = state[0], state[1]["known"]
        saved = time.monotonic()
        for number in progress(rounds[begun:], "reference", disable=accelerator.process_index > 0):
            part = batches[number : number + accelerator.num_processes]
            mine = part[min(accelerator.process_index, len(part) - 1)]
            answers = accelerator.gather(self._ask(denoiser, mine, size)).cpu()  # type: ignore[union-attr]
            for i, batch in enumerate(part):
                for draw, value in zip(batch, answers[i * size :], strict=False):
                    self.known[draw.sample, draw.number] = value
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
        batch = self.samples.noised(denoiser, draws)
        answers = answer(self.samples, denoiser.reference(batch), batch.target)
        return torch.cat([answers, answers[:1].expand(size - len(draws), *answers.shape[1:])]).contiguous()

    def recall(self, draws: list[Draw], device: torch.device) -> torch.Tensor:
        """Answers for these draws, (b, ...)."""
        return self.known[[d.sample for d in draws], [d.number for d in draws]].to(device)
