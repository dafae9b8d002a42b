"""What the next turn needs, made on the CPU in a thread while a GPU computes this one."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

T = TypeVar("T")


class Ahead(Generic[T]):
    """`make(turn)`, begun when the turn before is asked for; its errors are raised where its turn is asked for.

    One thread, so that `make` never runs twice at once; `start` is run in it first.
    """

    def __init__(self, make: Callable[[int], T], start: Callable[[], None] | None = None) -> None:
        self.make, self.pool = make, ThreadPoolExecutor(1, "ahead", start)
        self.begun: tuple[int, Future[T]] | None = None

    def __call__(self, turn: int) -> T:
        if self.begun is None or self.begun[0] != turn:
            self.begun = turn, self.pool.submit(self.make, turn)
        found = self.begun[1].result()
        self.begun = turn + 1, self.pool.submit(self.make, turn + 1)
        return found

    def close(self) -> None:
        """Drop what is begun; the thread ends."""
        self.pool.shutdown(cancel_futures=True)


def on_this_gpu() -> Callable[[], None]:
    """`start` of a thread that makes pinned memory: the current GPU is one of each thread."""
    current = torch.cuda.current_device()
    return lambda: torch.cuda.set_device(current)
