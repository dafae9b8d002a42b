"""CUDA graphs: a network's pass is recorded once and replayed, so that the GPU does not wait for the CPU's launches.

A step of a network of Stable Diffusion 1.5's size is some ten thousand kernels, most of them shorter than the launch.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from safetydpo.errors import SafetyDPOError
from safetydpo.running.devices import pinning

Run = Callable[..., torch.Tensor]


class _Pass(nn.Module):
    """A pass and what it trains: torch asks a module for the parameters that want a gradient."""

    def __init__(self, run: Run, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)
        self.run = run

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.run(*inputs)


class Graphs:
    """Passes by kind and their inputs' shapes; the first call of each records its pass, with gradient if that is on.

    All share one pool of memory, so a pass with gradient must have its backward pass before another one is replayed.
    What comes out, and the gradients, lie where the next replay of the same pass writes.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        self.recorded: dict[tuple[Any, ...], Run] = {}
        self.pool: Any = None

    def __call__(self, kind: str, run: Run, *inputs: torch.Tensor) -> torch.Tensor:
        """What `run`, the pass of this kind, makes of the inputs. SafetyDPOError where it cannot be recorded."""
        key = (kind, *((tensor.shape, tensor.requires_grad) for tensor in inputs))
        if key not in self.recorded:
            self.recorded[key] = self._record(run, inputs)
        return self.recorded[key](*inputs)

    def _record(self, run: Run, inputs: Sequence[torch.Tensor]) -> Run:
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        trained = _Pass(run, self.parameters if torch.is_grad_enabled() else [])
        places = tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in inputs)
        try:
            with pinning:
                graphed: Any = torch.cuda.make_graphed_callables(
                    trained, places, allow_unused_input=True, pool=self.pool
                )
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise SafetyDPOError(
                f"train.cuda_graphs does not work with this network ({str(error).splitlines()[0]}): set it to false."
            ) from None
        return graphed

    def keep_gradients(self) -> None:
        """Move the gradients to memory of their own, where the next backward pass adds to them."""
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad = parameter.grad.clone()
