"""Prediction types that training knows."""

import pytest
from diffusers import DDPMScheduler

from safetydpo.errors import SafetyDPOError
from safetydpo.models.prediction import prediction_of


def test_an_unknown_prediction_type_is_one_sentence():
    with pytest.raises(SafetyDPOError, match=r"m predicts sample .*training knows epsilon and v_prediction"):
        prediction_of(DDPMScheduler(prediction_type="sample").config, "m")
    with pytest.raises(SafetyDPOError, match="FlowMatchEulerDiscreteScheduler"):
        prediction_of({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}, "m")
