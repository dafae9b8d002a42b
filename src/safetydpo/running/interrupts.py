"""SIGTERM (a scheduler's walltime) and Ctrl-C: finish the batch, save, end; a later second one ends at once."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any, NoReturn

import torch
from accelerate import Accelerator

from safetydpo.errors import SafetyDPOError

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# A scheduler and a launcher may both pass a signal on: repeats within this many seconds are the same request.
ONE_REQUEST = 2.0


class Interrupt:
    """Inside the block a first signal only sets `asked`."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self.since = 0.0
        self.before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._heard) for number in SIGNALS}
        return self

    def _heard(self, number: int, _: FrameType | None) -> None:
        if self.asked is None:
            self.asked, self.since = number, time.monotonic()
        elif time.monotonic() - self.since > ONE_REQUEST:
            self.__exit__()
            os.kill(os.getpid(), number)

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}

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
