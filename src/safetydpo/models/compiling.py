"""torch.compile of a network: whether it works here, and where what it made is kept between jobs.

A network is compiled as one graph of one shape. In training the frozen model is the same graph with the adapters
multiplied by zero (`Denoiser.strength`), not one without them: two graphs would be fused, so rounded, each in its own
way, and beta magnifies the difference of two errors by thousands. One graph also takes half of the time to compile.
"""

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.models.index import Index

CACHE = "TORCHINDUCTOR_CACHE_DIR"


def prepare_compiler(model: Model, device: torch.device, key: str) -> None:
    """Make the first kernel. SafetyDPOError where that fails: no C++ compiler, no triton, no room for the cache; and
    for a model whose batches differ in shape. key: of the config that wants it.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # a second, for those who compile

    if not Index(model).family.one_shape:
        raise SafetyDPOError(
            f"{key} wants batches of one shape, and prompts of {model.id} have lengths of their own: set it to false."
        )
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    if os.environ.get(CACHE) in (None, default_cache_dir()):  # torch itself puts its default there, when it is imported
        os.environ[CACHE] = str(Path(home) / "safetydpo/inductor")
    folder = os.environ[CACHE]
    try:
        # diffusers' question for a library's version
        warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
        # DDP would cut the graph into parts to exchange their gradients early; a LoRA's are too small for that
        torch._dynamo.config.optimize_ddp = False
        compiled = torch.compile(lambda x: x.sin() + 1, dynamic=False)
        compiled(torch.ones(8, device=device))
    except Exception as error:  # of torch, triton, a compiler or the file system
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        needs = "triton and a C compiler" if device.type == "cuda" else "a C++ compiler"
        raise SafetyDPOError(
            f"{key} does not work here ({lines[0] if lines else type(error).__name__}): it needs {needs} with "
            f"Python's headers, and a cache folder ({folder}, or {CACHE}) that can be written; or set it to false."
        ) from None


def compile_network(network: Any) -> None:
    """Compile its forward pass, at the first call; names of modules and weights stay what they are. Once is enough."""
    if "forward" in vars(network):
        return
    network.forward = torch.compile(network.forward, dynamic=False)
