"""NaN and infinity end a job by name."""

import numpy as np
import pytest
import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.finite import finite


@pytest.mark.parametrize("make", [np.array, torch.tensor], ids=["numpy", "torch"])
def test_what_is_finite_comes_back_and_nothing_else_does(make):
    assert finite(make([1.0, -2.5]), "x", "y").tolist() == [1.0, -2.5]
    assert finite(make([]), "x", "y").tolist() == []
    with pytest.raises(SafetyDPOError) as caught:
        finite(make([[1.0, float("nan")], [float("inf"), -float("inf")]]), "embeddings of CLIP c", "get c again")
    assert str(caught.value) == "embeddings of CLIP c: 3 of 4 values are NaN or infinite; get c again."
