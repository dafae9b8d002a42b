"""Text embeddings: in float32 whatever the pipeline's precision, and finite."""

import pytest
import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.text_encoder import TextEncoder, encode_prompts


def test_embeddings_of_a_half_precision_pipeline_are_computed_in_float32(tiny):
    half = load_pipeline(tiny.model_copy(update={"dtype": "bfloat16"}))
    whole = load_pipeline(tiny)
    whole.text_encoder.bfloat16().float()  # its weights as rounded as the other's
    found = encode_prompts(half, ["a red circle"])["encoder_hidden_states"]
    assert torch.equal(found, encode_prompts(whole, ["a red circle"])["encoder_hidden_states"])
    assert half.text_encoder.dtype == torch.bfloat16


def test_embeddings_that_are_nan_are_refused(tiny):
    encoder = TextEncoder(tiny)
    encoder.pipeline.text_encoder.get_input_embeddings().weight.data.fill_(torch.nan)
    for ask in (encoder.embed, lambda prompts: encode_prompts(encoder.pipeline, prompts)):
        with pytest.raises(
            SafetyDPOError, match=r"text embeddings of .* are not finite \(.*of its text_encoder is not"
        ):
            ask(["a red circle"])
