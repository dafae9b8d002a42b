"""Co-Merge and its alternatives against examples worked out by hand."""

import pytest
import torch
from torch import nn

from safetydpo.errors import SafetyDPOError
from safetydpo.merging.coactivation import activation, counting, wins_of
from safetydpo.merging.strategies import merge, truncate, winner_masks

# Two experts of rank 1 on a layer with 2 inputs and 3 units. Updates B A:
#   one = [[1, 0], [2, 0], [0, 0]],  two = [[0, 0], [0, 1], [0, 3]]
ONE = (torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0], [2.0], [0.0]]))
TWO = (torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0], [1.0], [3.0]]))
EXPERTS = {"one": {"layer": ONE}, "two": {"layer": TWO}}
# Three inputs of one token: |one x| and |two x| by unit are
#   x = (1, 1): (1, 2, 0), (0, 1, 3);  x = (1, 3): (1, 2, 0), (0, 3, 9);  x = (2, 1): (2, 4, 0), (0, 1, 3)
# so unit 0 goes 3 : 0 to one, unit 1 goes 2 : 1 to one, unit 2 goes 0 : 3 to two.
INPUTS = torch.tensor([[[1.0, 1.0]], [[1.0, 3.0]], [[2.0, 1.0]]])
WINS = torch.tensor([[3, 2, 0], [0, 1, 3]])


def update(factors):
    a, b = factors["layer"]
    return b @ a


def test_wins_of_the_hand_example():
    found = wins_of(torch.stack([activation(*ONE, INPUTS), activation(*TWO, INPUTS)]))
    assert torch.equal(found, WINS)


def test_activation_is_the_mean_over_tokens():
    x = torch.tensor([[[1.0, 0.0], [-3.0, 0.0]]])  # |1 * 2| and |-3 * 2|: mean 4 for unit 1
    assert activation(*ONE, x).tolist() == [[2.0, 4.0, 0.0]]


def test_co_merge_takes_each_row_from_its_winner():
    merged = merge("co-merge", EXPERTS, {"layer": WINS})
    expected = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0]])
    assert torch.allclose(update(merged), expected, atol=1e-6)
    assert merged["layer"][0].shape == (2, 2)  # rank n * r


def test_exact_factors_equal_the_masked_sum_of_updates():
    torch.manual_seed(0)
    experts = {name: {"layer": (torch.randn(4, 32), torch.randn(24, 4))} for name in "abc"}
    wins = torch.randint(100, (3, 24))
    by_hand = sum(m[:, None] * update(e) for m, e in zip(winner_masks(wins), experts.values(), strict=True))
    assert (update(merge("co-merge", experts, {"layer": wins})) - by_hand).abs().max() < 1e-6


def test_mean_is_the_average_of_updates():
    expected = torch.tensor([[0.5, 0.0], [1.0, 0.5], [0.0, 1.5]])
    assert torch.allclose(update(merge("mean", EXPERTS)), expected)


def test_linear_has_cross_terms():
    # PEFT: (A1 + A2) / sqrt 2 and (B1 + B2) / sqrt 2, so the update is (B1 + B2)(A1 + A2) / 2 with A1 + A2 = (1, 1)
    expected = torch.tensor([[0.5, 0.5], [1.5, 1.5], [1.5, 1.5]])
    assert torch.allclose(update(merge("linear", EXPERTS)), expected)


def test_ties_elects_signs():
    # One unit, two inputs, updates (4, 1) and (-1, 2): both signs +; input 0 keeps 4 alone, input 1 averages 1, 2
    experts = {
        "one": {"layer": (torch.tensor([[4.0, 1.0]]), torch.ones(1, 1))},
        "two": {"layer": (torch.tensor([[-1.0, 2.0]]), torch.ones(1, 1))},
    }
    assert torch.allclose(update(merge("ties", experts, density=1.0)), torch.tensor([[4.0, 1.5]]), atol=1e-6)


def test_dare_ties_without_dropping_is_ties_without_trimming():
    found = (update(merge(name, EXPERTS, density=1.0, rank=2)) for name in ("dare-ties", "ties"))
    assert torch.allclose(*found, atol=1e-6)


def test_magnitude_prune_keeps_the_largest_values_of_each_expert():
    # updates (4, 1) and (-1, 2), half kept: (4, 0) and (0, 2), averaged
    experts = {
        "one": {"layer": (torch.tensor([[4.0, 1.0]]), torch.ones(1, 1))},
        "two": {"layer": (torch.tensor([[-1.0, 2.0]]), torch.ones(1, 1))},
    }
    found = update(merge("magnitude-prune", experts, density=0.5))
    assert torch.allclose(found, torch.tensor([[2.0, 1.0]]), atol=1e-6)


def test_svd_is_the_mean_at_the_experts_own_rank():
    a, b = merge("svd", EXPERTS)["layer"]
    assert a.shape[0] == EXPERTS["one"]["layer"][0].shape[0] == 1
    u, s, v = torch.linalg.svd(update(merge("mean", EXPERTS)))
    assert torch.allclose(b @ a, s[0] * torch.outer(u[:, 0], v[0]), atol=1e-6)


def test_truncate_keeps_the_largest_singular_value():
    matrix = torch.diag(torch.tensor([3.0, 1.0]))
    a, b = truncate(matrix, 2)
    assert torch.allclose(b @ a, matrix, atol=1e-6)
    a, b = truncate(matrix, 1)
    assert torch.allclose(b @ a, torch.diag(torch.tensor([3.0, 0.0])), atol=1e-6)


def test_experts_of_another_architecture_are_named():
    other = {"layer": ONE, "more": ONE}
    with pytest.raises(SafetyDPOError, match="one and two differ in architecture, first at more"):
        merge("mean", {"one": {"layer": ONE}, "two": other})


def test_counting_hooks_a_network_and_leaves_it_clean():
    net = nn.Sequential()
    net.add_module("layer", nn.Linear(2, 3))
    with counting(net, [{"layer": ONE}, {"layer": TWO}], ["layer"]) as wins:
        net(INPUTS[:2])
        net(INPUTS[2:])
    assert torch.equal(wins["layer"], WINS)
    assert not net.layer._forward_pre_hooks
