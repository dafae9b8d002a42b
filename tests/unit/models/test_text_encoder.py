"""Text embeddings: in float32 whatever the pipeline's precision, and finite."""

import pytest
import torch
from tiny import make_pipeline

from safetydpo.errors import SafetyDPOError
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.text_encoder import TextEncoder, encode_prompts


def test_embeddings_of_a_half_precision_pipeline_are_computed_in_float32(tiny):
    half = load_pipeline(tiny.model_copy(update={"dtype": "bfloat16"}))
    whole = load_pipeline(tiny)
    whole.text_encoder.bfloat16().float()  # its weights as rounded as the other's
    found = encode_prompts(half, ["a red circle"], tiny)["encoder_hidden_states"]
    assert torch.equal(found, encode_prompts(whole, ["a red circle"], tiny)["encoder_hidden_states"])
    assert half.text_encoder.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("family", "length", "longest"),
    [
        # a CLIP of 16 tokens, of which two stand around the prompt
        ("sd15", 0, 14),
        ("sd3", 0, 14),
        # a T5 of letters: a space before the first word, </s> after the last
        ("sd3-t5", 20, 18),
        ("flux-dev", 20, 18),
        # <|im_start|>user\n ... <|im_end|>\n<|im_start|>assistant\n, in bytes: 1 + 5 and 2 + 1 + 10
        ("z-image", 40, 21),
    ],
)
def test_a_prompt_fits_where_no_encoder_that_must_read_it_whole_cuts_it(tmp_path, family, length, longest):
    model = make_pipeline(tmp_path / "p", family)
    encoder = TextEncoder(model.model_copy(update={"call": {"max_sequence_length": length} if length else {}}))
    word = "red " if longest == 14 else "x"  # a token each
    assert encoder.fits((word * longest).strip())
    assert not encoder.fits((word * (longest + 1)).strip())
    vectors = encoder.embed(["a red circle", "a blue square"])
    assert (vectors**2).sum(1) == pytest.approx([1, 1], abs=1e-5)
    assert encoder.similarity(["a red circle"], ["a red circle"]) == pytest.approx([1], abs=1e-5)


@pytest.mark.parametrize("family", ["sd3-t5", "flux-dev", "z-image"])
def test_embeddings_of_a_transformer_are_kept_in_the_models_own_precision(tmp_path, family):
    model = make_pipeline(tmp_path / "p", family).model_copy(update={"dtype": "bfloat16"})
    condition = encode_prompts(load_pipeline(model), ["a red circle", "a star"], model)
    assert {t.dtype for t in condition.values() if t.is_floating_point()} == {torch.bfloat16}


def test_embeddings_that_are_nan_are_refused(tiny):
    encoder = TextEncoder(tiny)
    encoder.pipeline.text_encoder.get_input_embeddings().weight.data.fill_(torch.nan)
    for ask in (encoder.embed, lambda prompts: encode_prompts(encoder.pipeline, prompts, tiny)):
        with pytest.raises(
            SafetyDPOError, match=r"text embeddings of .* are not finite \(.*of its text_encoder is not"
        ):
            ask(["a red circle"])
