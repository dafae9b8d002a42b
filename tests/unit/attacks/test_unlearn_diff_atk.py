"""UnlearnDiffAtk's steps against values derived by hand."""

import pytest
import torch
from attacks_target import SMALL, WORDS, case, rng, target_of

from safetydpo.attacks.case import Given
from safetydpo.attacks.unlearn_diff_atk import PrefixSearch, project_to_simplex, straight_through
from safetydpo.config.attacks import Attacks


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_batch_of_prompts_of_different_lengths_is_each_of_them(tmp_path, family):
    target = target_of(tmp_path / "m", family)
    config = Attacks(run=["unlearn-diff-atk"], forbidden=WORDS, **SMALL).unlearn_diff_atk
    search = PrefixSearch(target, config, Given({}, strip=False))
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
