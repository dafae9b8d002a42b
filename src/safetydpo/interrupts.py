"""SIGTERM (a scheduler's walltime) and Ctrl-C: finish the step, save, end; a second one ends at once."""

import signal
import threading
from types import FrameType
from typing import Any, NoReturn

import torch
from accelerate import Accelerator

from safetydpo.errors import SafetyDPOError

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """Inside the block a first signal only sets `asked`; what was there before is back for a second one."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._heard) for number in SIGNALS}
        return self

    def _heard(self, number: int, _: FrameType | None) -> None:
        self.asked = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

    def __exit__(self, *_: object) -> None:
        self._restore()

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any of the processes was asked to end; all get the same answer."""
        if accelerator.num_processes == 1:
            return self.asked is not None
        asked = torch.tensor(float(self.asked is not None), device=accelerator.device)
        return bool(accelerator.reduce(asked, "sum") > 0)  # type: ignore[operator]

    def end(self, kept: str) -> NoReturn:
        """End the job; `kept` says what is saved."""
        name = signal.Signals(self.asked).name if self.asked else "a signal to another process"
        raise SafetyDPOError(f"Ended by {name}; {kept}: the same command goes on from there.")
