"""Numbers that decide something are numbers: NaN and infinity end a job by name, they never count as an answer."""

import math
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from safetydpo.errors import SafetyDPOError

if TYPE_CHECKING:
    import torch

Numbers = TypeVar("Numbers", "np.ndarray", "torch.Tensor")


def finite(values: Numbers, what: str, todo: str) -> Numbers:
    """The values as they are; SafetyDPOError where one is NaN or infinite.

    what: whose numbers they are, with the file where there is one; todo: what the user can do. Both end up in the
    message `<what>: 3 of 8 values are NaN or infinite; <todo>.`
    """
    if values.size if isinstance(values, np.ndarray) else values.numel():
        ends = (values.min(), values.max()) if isinstance(values, np.ndarray) else values.detach().aminmax()
        if not all(math.isfinite(end) for end in ends):  # NaN is both; no array of booleans as large as the weights
            good = np.isfinite(values) if isinstance(values, np.ndarray) else values.isfinite()
            count = f"{int((~good).sum())} of {math.prod(good.shape)}"
            raise SafetyDPOError(f"{what}: {count} values are NaN or infinite; {todo}.")
    return values
