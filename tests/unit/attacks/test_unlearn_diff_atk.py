"""UnlearnDiffAtk's steps against values derived by hand."""

import copy

import pytest
import torch
from attacks_target import SMALL, WORDS, case, rng, target_of

from safetydpo.attacks.case import Given
from safetydpo.attacks.unlearn_diff_atk import PrefixSearch, project_to_simplex, straight_through
from safetydpo.config.attacks import Attacks
from safetydpo.errors import SafetyDPOError

CONFIG = Attacks(run=["unlearn-diff-atk"], forbidden=WORDS, **SMALL).unlearn_diff_atk


def test_a_vae_that_overflows_in_half_precision_encodes_in_float32(tmp_path):
    target = target_of(tmp_path / "m", "sdxl")
    vae = target.pipeline.vae
    vae.encoder.conv_in.weight.data *= 1e5  # as SDXL's: activations beyond 65504
    vae.half()
    image = torch.from_numpy(case().base_image).permute(2, 0, 1)[None] / 127.5 - 1
    wanted = copy.deepcopy(vae).float().encode(image).latent_dist.mean * 0.13025  # SDXL's scaling factor
    assert not vae.encode(image.half()).latent_dist.mean.isfinite().all()
    found = PrefixSearch(target, CONFIG, Given({}, strip=False))._latents(case())
    assert found.isfinite().all()
    assert torch.allclose(found, wanted)
    assert {p.dtype for p in vae.parameters()} == {torch.float16}  # what the pipeline renders with


@pytest.mark.parametrize(
    ("part", "said"),
    [("vae", "latents of base's image"), ("unet", "the UNet's errors"), ("text_encoder", "text embeddings")],
)
def test_nan_of_a_model_is_a_sentence_and_no_prefix(tmp_path, part, said):
    target = target_of(tmp_path / "m")
    for parameter in getattr(target.pipeline, part).parameters():
        parameter.data.fill_(torch.nan)
    with pytest.raises(SafetyDPOError, match=rf"attacks: {said} of .*m are not finite \(\S+ of its {part} is not\)"):
        PrefixSearch(target, CONFIG, Given({}, strip=False)).propose([case()])


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_batch_of_prompts_of_different_lengths_is_each_of_them(tmp_path, family):
    target = target_of(tmp_path / "m", family)
    search = PrefixSearch(target, CONFIG, Given({}, strip=False))
    cases = [case(1), case(2)]
    cases[1].original = "a red circle"
    for one in cases:
        search._start(one)
    timesteps, noise = torch.tensor([300, 700]), torch.randn(2, *cases[0].state["latents"].shape[1:], generator=rng())
    both = search._loss(cases, timesteps, noise)
    alone = [search._loss([c], timesteps[i : i + 1], noise[i : i + 1]) for i, c in enumerate(cases)]
    assert torch.allclose(both, torch.cat(alone), atol=1e-5)
    gradient = torch.autograd.grad(both.sum(), cases[1].state["prefix"], retain_graph=True)[0]
    assert torch.allclose(gradient, torch.autograd.grad(alone[1].sum(), cases[1].state["prefix"])[0], atol=1e-6)


def test_projection_to_the_simplex_by_hand():
    assert project_to_simplex(torch.tensor([0.5, 0.5])).tolist() == [0.5, 0.5]
    assert project_to_simplex(torch.tensor([2.0, 0.0])).tolist() == [1.0, 0.0]
    assert torch.allclose(project_to_simplex(torch.tensor([0.8, 0.6, -1.0])), torch.tensor([0.6, 0.4, 0.0]))


def test_straight_through_is_a_one_hot_with_the_gradient_of_its_input():
    rows = torch.tensor([[0.2, 0.5, 0.3]], requires_grad=True)
    hard = straight_through(rows)
    assert hard.tolist() == [[0.0, 1.0, 0.0]]
    (hard * torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
    assert rows.grad is not None
    assert rows.grad.tolist() == [[1.0, 2.0, 3.0]]
