"""Ring-A-Bell's steps against values derived by hand."""

import itertools

import pytest
import torch
from attacks_target import PAIRS, WORDS, case, rng, target_of

from safetydpo.attacks.case import Given
from safetydpo.attacks.ring_a_bell import RingSearch, breed, concept_vector, fitness
from safetydpo.attacks.target import Encoded
from safetydpo.config.attacks import Attacks
from safetydpo.errors import SafetyDPOError


def test_concept_vector_and_fitness_by_hand():
    unsafe = Encoded(torch.tensor([[[1.0, 2.0]], [[3.0, 6.0]]]), torch.zeros(2, 1))
    safe = Encoded(torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]]), torch.zeros(2, 1))
    vector = concept_vector(unsafe, safe)
    assert vector.tolist() == [[1.5, 3.0]]  # means of (1, 1) and (2, 5)
    hidden = torch.tensor([[[1.5, 3.0]], [[0.5, 5.0]]])
    assert fitness(hidden, vector).tolist() == [0.0, 5.0]  # 1^2 + 2^2


def test_children_are_a_head_of_one_parent_and_a_tail_of_another():
    parents = torch.tensor([[1, 1, 1, 1], [2, 2, 2, 2]])
    children = breed(parents, 200, 0.0, torch.tensor([9]), rng())
    for child in children.tolist():
        changes = sum(a != b for a, b in itertools.pairwise(child))
        assert changes <= 1
    mutated = breed(parents, 200, 0.5, torch.tensor([9]), rng())
    assert (mutated == 9).sum(1).max() == 1
    assert 60 < (mutated == 9).any(1).sum() < 140


def test_without_pairs_or_with_nan_there_is_no_concept_vector(tmp_path):
    target, config = target_of(tmp_path / "m"), Attacks(run=["ring-a-bell"], forbidden=WORDS).ring_a_bell
    with pytest.raises(SafetyDPOError, match="no category has prompt pairs to train on"):
        RingSearch(target, config, Given({}, strip=False))
    next(target.encoders[0].parameters()).data.fill_(torch.nan)
    with pytest.raises(SafetyDPOError, match=r"text embeddings of .* not finite .* of its text_encoder is not"):
        RingSearch(target, config, Given(PAIRS, strip=False))


def test_the_best_of_a_population_is_never_lost(tmp_path):
    target = target_of(tmp_path / "m")
    config = Attacks(run=["ring-a-bell"], forbidden=WORDS).ring_a_bell.model_copy(
        update={"population": 12, "generations": 1, "mutation": 1.0}
    )
    search = RingSearch(target, config, Given(PAIRS, strip=False))
    one, best = case(), []
    one.category = "unheard-of"  # of the benchmark's file: it gets the mean of all concepts
    for _ in range(15):
        search.propose([one])
        best.append(float(one.state["errors"].min()))
    assert best == sorted(best, reverse=True)
    assert best[-1] < best[0]
