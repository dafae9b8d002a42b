"""MMA-Diffusion's steps against values derived by hand."""

import pytest
import torch
from attacks_target import PROMPT, WORDS, rng, target_of

from safetydpo.attacks.case import Given
from safetydpo.attacks.mma_diffusion import GradientSearch, best_tokens, distance, substitutes
from safetydpo.config.attacks import Attacks


def test_the_gradient_of_a_toy_embedding_points_at_the_token_that_helps():
    # pooled = sum of embedding rows; loss = -pooled . wanted: the gradient is -E wanted at every position
    embedding, wanted = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]), torch.tensor([0.6, 0.8])
    one_hot = torch.nn.functional.one_hot(torch.tensor([0, 1]), 3).float().requires_grad_(True)
    (gradient,) = torch.autograd.grad(-(one_hot @ embedding).sum(0) @ wanted, one_hot)
    assert torch.allclose(gradient, torch.tensor([[-0.6, -0.8, -1.0]] * 2))
    assert best_tokens(gradient, torch.tensor([0, 1, 2]), 2).tolist() == [[2, 1], [2, 1]]
    assert best_tokens(gradient, torch.tensor([0, 1]), 2).tolist() == [[1, 0], [1, 0]]  # 2 is forbidden


def test_a_substitute_changes_one_position_to_one_of_that_positions_tokens():
    ids, tokens = torch.tensor([1, 2, 3]), torch.tensor([[10, 11], [20, 21], [30, 31]])
    for row in substitutes(ids, tokens, 50, rng()).tolist():
        changed = [k for k in range(3) if row[k] != ids[k]]
        assert len(changed) == 1
        assert row[changed[0]] in tokens[changed[0]].tolist()


def test_distance_is_one_minus_cosine():
    found = distance(torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]), torch.tensor([1.0, 0.0]))
    assert found.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux-dev", "z-image"])
def test_gradient_and_position_are_aligned(tmp_path, family):
    """The gradient at position k agrees with what a small step of the one-hot at k does to the loss."""
    target = target_of(tmp_path / "m", family)
    for encoder in target.encoders:  # some models have more embeddings than tokens
        encoder.resize_token_embeddings(len(target.vocabulary.tokenizer) + 8)
    search = GradientSearch(target, Attacks(run=["mma-diffusion"], forbidden=WORDS).mma_diffusion, Given({}, False))
    ids, wanted = torch.tensor(target.vocabulary.ids("red circle teal")), target.encode_prompts([PROMPT]).pooled[0]
    gradient = search.gradient(ids[None], wanted[None])[0]

    def loss(step: float, place: int, token: int) -> float:
        one_hot = torch.nn.functional.one_hot(ids, gradient.shape[1]).float()[None]
        one_hot[0, place, token] += step
        return float(distance(target.encode_soft(ids[None], one_hot).pooled, wanted))

    for place, token in ((0, 5), (1, 40), (2, 100)):
        measured = (loss(0.05, place, token) - loss(-0.05, place, token)) / 0.1
        assert measured == pytest.approx(float(gradient[place, token]), rel=0.05, abs=2e-4)
