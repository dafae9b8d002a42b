"""UCE against its formula, on tiny models."""

import pytest
import torch
from tiny import make_pipeline

from safetydpo.baselines.stage import erase
from safetydpo.baselines.uce import edited, subject_embeddings
from safetydpo.config.baselines import Baselines, Uce
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import open_method
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import read_safetensors

CONCEPTS = ["brulo", "odalo", "gumet"]


def test_uce_is_its_formula_by_a_naive_loop():
    torch.manual_seed(0)
    weight, erased, guide, preserve = torch.randn(3, 4), torch.randn(2, 4), torch.randn(4), torch.randn(5, 4)
    config = Uce(erase_scale=0.7, preserve_scale=0.3, keep_scale=0.5)
    left, right = 0.5 * weight, 0.5 * torch.eye(4)
    for c in erased:
        left = left + 0.7 * torch.outer(weight @ guide, c)
        right = right + 0.7 * torch.outer(c, c)
    for c in preserve:
        left = left + 0.3 * torch.outer(weight @ c, c)
        right = right + 0.3 * torch.outer(c, c)
    assert torch.allclose(edited(weight, erased, guide, preserve, config), left @ right.inverse(), atol=1e-5)


def test_uce_by_hand_in_one_dimension():
    """W = 2, c = 3, guide 1, preserve 0: (0.5 * 2 + 2 * 3) / (0.5 + 9) = 7 / 9.5."""
    one = torch.tensor
    found = edited(one([[2.0]]), one([[3.0]]), one([1.0]), one([[0.0]]), Uce())
    assert found.item() == pytest.approx(7 / 9.5)


def test_a_matrix_that_rounding_decides_or_nan_is_not_written():
    """Of one concept in two dimensions, 1 + lambda and lambda are the eigenvalues: condition 1 / lambda."""
    weight, c, none = torch.eye(2), torch.tensor([[1.0, 0.0]]), torch.zeros(1, 2)
    assert edited(weight, c, c[0], none, Uce(keep_scale=1e-9)).allclose(weight)  # the concept is its own guide
    with pytest.raises(
        SafetyDPOError, match=r"keep_scale 1e-15 is nothing beside erase_scale 1 .* raise uce\.keep_scale"
    ):
        edited(weight, c, c[0], none, Uce(keep_scale=1e-15))
    with pytest.raises(SafetyDPOError, match=r"uce: a changed weight: \d of 4 values are NaN"):
        edited(weight * torch.nan, c, c[0], none, Uce())


def test_a_subject_is_the_last_word_piece(tiny):
    pipeline = load_pipeline(tiny)
    states = pipeline.encode_prompt(["a red circle"], "cpu", 1, False)[0][0]
    found = subject_embeddings(pipeline, ["a red circle", ""], tiny)
    assert found[0].allclose(states[3])  # start, a, red, circle, end
    assert found[1].allclose(states[0])


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_uce_changes_cross_attention_values_towards_the_guide(tmp_path, family):
    model = make_pipeline(tmp_path / "p", family)
    strong = Baselines(concepts=CONCEPTS, uce=Uce(erase_scale=1e4, guide="circle"))
    erase("uce", model, strong, 0, tmp_path / "c", tmp_path / "w.safetensors")
    changed, header = read_safetensors(tmp_path / "w.safetensors")
    assert '"method": "uce"' in header["safetydpo"]
    pipeline = load_pipeline(model)
    old = dict(pipeline.unet.named_parameters())
    assert set(changed) == {n for n in old if n.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    name = next(n for n in changed if n.endswith("to_v.weight"))
    c, guide = (subject_embeddings(pipeline, texts, model) for texts in (CONCEPTS, ["circle"]))
    assert torch.allclose(c @ changed[name].T, (old[name] @ guide[0]).expand(3, -1), atol=1e-2)
    assert not torch.allclose(c @ old[name].T, (old[name] @ guide[0]).expand(3, -1), atol=1e-2)
    rendered = open_method("uce", model, strong, tmp_path / "w.safetensors").unet
    assert dict(rendered.named_parameters())[name].equal(changed[name])
