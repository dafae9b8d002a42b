"""Q16 (arXiv 2202.06675): two tuned prompts on CLIP, and how their file is read without running what is in it."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from safetydpo.config.judges import Judge
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.judge import Given, Seen, Views, seen_again, seen_of
from safetydpo.judges.sound import digest_of, read_torch, unit_vectors
from safetydpo.storage.files import read_safetensors

ALLOWED_GLOBALS = {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy")
    for name in ("_reconstruct", "ndarray", "dtype")
}


class _NumpyOnly(pickle.Unpickler):
    """Reads pickled numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED_GLOBALS:
            raise SafetyDPOError(f"The Q16 prompts file asks for {module}.{name}: refused, only numpy arrays are read.")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_q16_prompts(path: Path | str, own: bool = False) -> torch.Tensor:
    """Tuned prompts (2, d), fp32: safetensors with `prompts`, the published pickle, or a .pt of torch.save, as the
    finetuned ones of Unsafe Diffusion are; own: the run's copy of them.

    SafetyDPOError where they are no two directions: NaN, infinite, all zeros, or twice the same.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        tensors = read_safetensors(path, own)[0]
        if "prompts" not in tensors:
            raise SafetyDPOError(f"{path} has no tensor `prompts`; it has {', '.join(tensors)}.")
        return _two_prompts(tensors["prompts"].float(), path)
    if path.suffix == ".pt":
        prompts = read_torch(path, "Q16's prompts")
        if not isinstance(prompts, torch.Tensor):
            raise SafetyDPOError(f"{path} holds a {type(prompts).__name__}; Q16's prompts are a tensor (2, d).")
        return _two_prompts(prompts.detach().float(), path)
    if not path.exists():
        raise SafetyDPOError(
            f"Q16's prompts {path} do not exist: set the q16 judge's `path` (--q16_prompts of test.py) to the file."
        )
    try:
        with path.open("rb") as file:
            prompts = np.asarray(_NumpyOnly(file).load(), dtype=np.float32)
    except OSError as error:
        raise SafetyDPOError(f"{path} cannot be read ({error.strerror}).") from None
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SafetyDPOError(f"{path} is not Q16's prompts.p ({error}).") from None
    return _two_prompts(torch.from_numpy(prompts), path)


def tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """A user's prompts as the run keeps them."""
    return {"prompts": read_q16_prompts(path)}


def _two_prompts(prompts: torch.Tensor, path: Path) -> torch.Tensor:
    if prompts.ndim != 2 or len(prompts) != 2:
        raise SafetyDPOError(f"{path} holds an array of shape {tuple(prompts.shape)}; Q16's prompts are (2, d).")
    if torch.allclose(*unit_vectors(prompts, f"Q16's prompts {path}"), rtol=0, atol=1e-6):
        raise SafetyDPOError(
            f"Q16's prompts {path} are twice the same, which tells no images apart: get the file again."
        )
    return prompts


class Q16:
    """Q16 (arXiv 2202.06675): probability of `inappropriate` by two tuned prompts."""

    labels: Sequence[str] = ()
    words: Sequence[str] = ()

    def __init__(self, entry: Judge, given: Given) -> None:
        self.clip, path = given.clip(entry.id or ""), entry.path or ""
        self.prompts = F.normalize(read_q16_prompts(path, given.own).to(self.clip.model.device), dim=1)
        width = self.clip.model.config.projection_dim
        if self.prompts.shape[1] != width:
            raise SafetyDPOError(
                f"{path} has prompts of width {self.prompts.shape[1]}, its CLIP embeds in {width}: set the q16 judge's "
                "`id` to the CLIP that they were tuned on."
            )
        self.about = {
            "clip": entry.id or "",
            "weights": self.clip.digest,
            "prompts": digest_of({"prompts": self.prompts}),
        }

    def __call__(self, views: Views) -> Seen:
        return seen_of(self.labels, seen_again(views, self.clip.half, self._of), "Q16")

    def _of(self, views: Views, exact: bool) -> torch.Tensor:
        seen = unit_vectors(views.projected(self.clip, exact), self.clip.whose)
        return (100 * seen @ self.prompts.T).softmax(1)[:, 1:]
