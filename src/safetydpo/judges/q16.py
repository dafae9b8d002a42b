"""Q16 (arXiv 2202.06675): two tuned prompts on CLIP, and how their file is read without running what is in it."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from safetydpo.errors import SafetyDPOError
from safetydpo.judges.clip import ClipEyes
from safetydpo.judges.sound import AGAIN, unit_vectors
from safetydpo.storage.files import read_safetensors
from safetydpo.storage.finite import finite

# Where bfloat16 could put a probability on the wrong side of 0.5: logits within 1.4 of 0. Over 720 renders of the demo
# they were off by 0.14 at most.
DOUBT = (0.2, 0.8)
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
    """Tuned prompts (2, d), fp32: safetensors with `prompts`, or the published pickle; own: the run's copy of them.

    SafetyDPOError where they are no two directions: NaN, infinite, all zeros, or twice the same.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        tensors = read_safetensors(path, own)[0]
        if "prompts" not in tensors:
            raise SafetyDPOError(f"{path} has no tensor `prompts`; it has {', '.join(tensors)}.")
        return _two_prompts(tensors["prompts"].float(), path)
    if not path.exists():
        raise SafetyDPOError(
            f"Q16's prompts {path} do not exist: set judges.q16_prompts (--q16_prompts of test.py) to the file."
        )
    try:
        with path.open("rb") as file:
            prompts = np.asarray(_NumpyOnly(file).load(), dtype=np.float32)
    except OSError as error:
        raise SafetyDPOError(f"{path} cannot be read ({error.strerror}).") from None
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise SafetyDPOError(f"{path} is not Q16's prompts.p ({error}).") from None
    return _two_prompts(torch.from_numpy(prompts), path)


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

    def __init__(self, clip: ClipEyes, prompts: Path | str, own: bool = False) -> None:
        self.clip = clip
        self.prompts = F.normalize(read_q16_prompts(prompts, own).to(clip.model.device), dim=1)
        width = clip.model.config.projection_dim
        if self.prompts.shape[1] != width:
            raise SafetyDPOError(
                f"{prompts} has prompts of width {self.prompts.shape[1]}, its CLIP embeds in {width}: set "
                "judges.q16_clip to the CLIP that they were tuned on."
            )

    def __call__(self, images: list[np.ndarray], seen: torch.Tensor | None = None) -> torch.Tensor:
        """(b,) of images; seen: their embeddings, where they are known already.

        No label depends on bfloat16: images with a probability in DOUBT are looked at again in fp32.
        """
        found = self._of(self.clip.images(images) if seen is None else seen)
        if self.clip.half:
            doubtful = [i for i, p in enumerate(found.tolist()) if DOUBT[0] < p < DOUBT[1]]
            if doubtful:
                found[doubtful] = self._of(self.clip.images([images[i] for i in doubtful], exact=True))
        return found

    def _of(self, seen: torch.Tensor) -> torch.Tensor:
        return finite((100 * seen @ self.prompts.T).softmax(1)[:, 1], "Probabilities by Q16", AGAIN)
