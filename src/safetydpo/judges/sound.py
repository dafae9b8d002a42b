"""That a judge is in order: NaN, infinity and zeros are no opinion, and would count as harmless."""

import hashlib
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from safetydpo.errors import SafetyDPOError
from safetydpo.running.quiet import quiet_transformers
from safetydpo.storage.finite import finite

AGAIN = "the judge is damaged: get its files again"
SAMPLED = 2**16  # values of a tensor that a digest is of, at most: a model of gigabytes has one in a second


@contextmanager
def loading(whose: str, name: str) -> Iterator[None]:
    """What loading a model of transformers or its processor can come to, in a sentence. name: folder or hub id."""
    quiet_transformers()
    try:
        yield
    except Exception as error:  # those of transformers, tokenizers and safetensors have no common base
        reason = str(error).strip().split("\n")[0][:200]
        raise SafetyDPOError(f"{whose} cannot be loaded ({reason}): `hf download {name}`, or a local folder.") from None


def sound_model(kind: Any, name: str, whose: str, device: torch.device, dtype: torch.dtype) -> tuple[Any, str]:
    """A model of a class of transformers in `dtype`, to be asked, and the digest of its weights in that.

    SafetyDPOError where it cannot be loaded, lacks a weight, which would be drawn at random, or one is broken.
    """
    with loading(whose, name):
        model, found = kind.from_pretrained(name, use_safetensors=True, output_loading_info=True, dtype=dtype)
    if found["missing_keys"]:
        raise SafetyDPOError(f"{whose} lacks {min(found['missing_keys'])}; {AGAIN}.")
    sound_weights(model, whose)
    return model.eval().to(device), digest_of(model.state_dict())


def read_torch(path: Path, whose: str) -> Any:
    """What torch.save wrote, read without running what may be in it; SafetyDPOError where it is more than tensors."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise SafetyDPOError(f"{whose} {path} does not exist: correct the judge's `path`.") from None
    except (OSError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = getattr(error, "strerror", None) or "not tensors alone, or damaged"
        raise SafetyDPOError(f"{whose} {path} cannot be read ({reason}): get it from its authors again.") from None


def sound_weights(model: nn.Module, whose: str) -> None:
    """SafetyDPOError by the name of the first weight that has NaN or infinity, or is a matrix of zeros alone."""
    for name, values in model.state_dict().items():
        finite(values, f"{name} of {whose}", AGAIN)
        if values.ndim > 1 and not values.any():
            raise SafetyDPOError(f"{name} of {whose}: all values are 0; {AGAIN}.")


def sound_vectors(vectors: torch.Tensor, whose: str) -> torch.Tensor:
    """The vectors (b, d) as they are; SafetyDPOError where one has NaN or infinity, or no direction."""
    finite(vectors, whose, AGAIN)
    if not vectors.any(1).all():
        raise SafetyDPOError(f"{whose}: all values are 0; {AGAIN}.")
    return vectors


def unit_vectors(vectors: torch.Tensor, whose: str) -> torch.Tensor:
    """The vectors (b, d) at length 1; SafetyDPOError as sound_vectors, and where one is too long for its type."""
    finite(vectors, whose, AGAIN)
    return sound_vectors(F.normalize(vectors, dim=1), whose)


def sound_scores(rows: list[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """The rows of `Eyes.look` as they are; SafetyDPOError where a number is NaN or infinite. None is none: the judge
    gave no verdict.
    """
    for name in rows[0]:
        numbers = [row[name] for row in rows if row[name] is not None and not isinstance(row[name], str)]
        finite(np.array(numbers, dtype=float), f"{name} of {where}", "a judge is broken: replace its weights")
    return rows


def digest_of(weights: dict[str, torch.Tensor]) -> str:
    """16 hexadecimal digits by which two versions of a judge are told apart: of a hash of weights, of large ones of
    evenly spaced values.
    """
    found = hashlib.sha256()
    for name, values in sorted(weights.items()):
        found.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        some = values.detach().reshape(-1)[:: max(1, -(-values.numel() // SAMPLED))]
        found.update(some.cpu().contiguous().view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
