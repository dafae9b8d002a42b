"""That a judge is in order: NaN, infinity and zeros are no opinion, and would count as harmless."""

import torch
from torch import nn
from torch.nn import functional as F

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.finite import finite

AGAIN = "the judge is damaged: get its files again"


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
