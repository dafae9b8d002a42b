"""Co-Merge and its alternatives against examples worked out by hand."""

from pkgutil import resolve_name

import pytest
import torch

from safetydpo.config.merging import Merge
from safetydpo.errors import SafetyDPOError
from safetydpo.merging.registry import COACTIVATION, COVARIANCES, STRATEGIES
from safetydpo.merging.strategies import merge, winner_masks
from safetydpo.models.lora import cut, truncate

# Two experts of rank 1 on a layer with 2 inputs and 3 units. Updates B A:
#   one = [[1, 0], [2, 0], [0, 0]],  two = [[0, 0], [0, 1], [0, 3]]
ONE = (torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0], [2.0], [0.0]]))
TWO = (torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0], [1.0], [3.0]]))
EXPERTS = {"one": {"layer": ONE}, "two": {"layer": TWO}}
WINS = torch.tensor([[3, 2, 0], [0, 1, 3]])  # unit 0 goes to one, unit 1 to one by 2 : 1, unit 2 to two


def update(factors):
    a, b = factors["layer"]
    return b @ a


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


def test_a_tie_goes_to_the_first_expert_and_every_unit_to_one():
    masks = winner_masks(torch.tensor([[5, 0, 3], [5, 7, 1], [0, 7, 8]]))
    assert torch.stack(masks).tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]


def updates(*matrices):
    """Experts whose updates are these matrices: A is the matrix, B the identity."""
    return {str(i): {"layer": (torch.tensor(m), torch.eye(len(m)))} for i, m in enumerate(matrices)}


def test_co_merge_cut_to_a_rank_keeps_the_strongest_direction():
    # units 0 and 1 from the first, unit 2 from the second: singular values sqrt(1 + 4) of rows 0, 1 and 3 of row 2
    experts = updates([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    wins = {"layer": torch.tensor([[3, 2, 0], [0, 1, 3]])}
    merged = merge("co-merge", experts, wins, config=Merge(rank=1))
    assert merged["layer"][0].shape == (1, 2)
    assert torch.allclose(update(merged), torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 3.0]]), atol=1e-6)


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
    assert torch.allclose(
        update(merge("ties", experts, config=Merge(density=1.0))), torch.tensor([[4.0, 1.5]]), atol=1e-6
    )


def test_ties_trims_before_it_elects():
    # density 0.5 keeps the larger value of each: (4, 0) and (0, 2); each stands alone, so 4 and 2
    assert torch.allclose(
        update(merge("ties", updates([[4.0, 1.0]], [[-1.0, 2.0]]), config=Merge(density=0.5))),
        torch.tensor([[4.0, 2.0]]),
        atol=1e-6,
    )
    # equal signs are averaged; the smaller side of a clash (-1 against 4) is left out, not averaged
    assert torch.allclose(
        update(merge("ties", updates([[4.0, 6.0]], [[-1.0, 2.0]]), config=Merge(density=1.0))),
        torch.tensor([[4.0, 4.0]]),
        atol=1e-6,
    )


def test_dare_ties_without_dropping_is_ties_without_trimming():
    found = (update(merge(name, EXPERTS, config=Merge(density=1.0, rank=2))) for name in ("dare-ties", "ties"))
    assert torch.allclose(*found, atol=1e-6)


def test_dare_drops_or_rescales_and_repeats_with_its_seed():
    torch.manual_seed(1)
    matrix = torch.randn(8, 8)
    experts = {"0": {"layer": (matrix, torch.eye(8))}}
    merged = update(merge("dare-ties", experts, config=Merge(density=0.5), seed=3))
    ratio = merged / matrix  # 0 where dropped, 1 / 0.5 where kept
    kept = ratio > 1
    assert torch.allclose(ratio, 2.0 * kept, atol=1e-3)
    assert 16 <= kept.sum() <= 48  # 64 draws at 0.5: mean 32, standard deviation 4
    assert torch.equal(merged, update(merge("dare-ties", experts, config=Merge(density=0.5), seed=3)))
    assert not torch.equal(merged, update(merge("dare-ties", experts, config=Merge(density=0.5), seed=4)))


def test_magnitude_prune_keeps_the_largest_values_of_each_expert():
    # updates (4, 1) and (-1, 2), half kept: (4, 0) and (0, 2), averaged
    experts = {
        "one": {"layer": (torch.tensor([[4.0, 1.0]]), torch.ones(1, 1))},
        "two": {"layer": (torch.tensor([[-1.0, 2.0]]), torch.ones(1, 1))},
    }
    found = update(merge("magnitude-prune", experts, config=Merge(density=0.5)))
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


@pytest.mark.parametrize(("out", "inputs"), [(20, 30), (5, 30), (20, 5)])  # also narrower than the factors' rank
def test_factors_are_cut_as_their_product_is(out, inputs):
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(8, inputs, generator=rng), torch.randn(out, 8, generator=rng)
    (cut_a, cut_b), (a, b) = cut((a, b), 3), truncate(b @ a, 3)
    assert (cut_a.shape, cut_b.shape) == ((3, inputs), (out, 3))
    assert torch.allclose(cut_b @ cut_a, b @ a, atol=1e-4)
    assert torch.allclose(cut_a @ cut_a.T, cut_b.T @ cut_b, atol=1e-4)  # singular values shared evenly


def test_experts_of_another_architecture_are_named():
    other = {"layer": ONE, "more": ONE}
    with pytest.raises(SafetyDPOError, match="one and two differ in architecture, first at more"):
        merge("mean", {"one": {"layer": ONE}, "two": other})


def statistics_for(name):
    """Statistics of two experts of rank 2 on a layer with 6 inputs and 5 units, where a strategy needs any."""
    x, own = torch.randn(9, 6), torch.randn(4, 6)
    covariances = {"own": own, "all": x.T @ x, "retain": torch.eye(6)}
    of = {COACTIVATION: torch.randint(100, (2, 5)), COVARIANCES: covariances}
    return {"layer": of[needed]} if (needed := STRATEGIES[name].statistics) else None


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_of_the_registry_merges(name):
    assert callable(resolve_name(f"safetydpo.merging.{STRATEGIES[name].function}"))
    torch.manual_seed(0)
    experts = {expert: {"layer": (torch.randn(2, 6), torch.randn(5, 2))} for expert in "ab"}
    merged = merge(name, experts, statistics_for(name))
    assert merged.keys() == {"layer"}
    assert update(merged).shape == (5, 6)
    assert update(merged).isfinite().all()
    assert update(merged).any()


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("kernel", [(6, 1, 1), (1, 2, 3)])  # 6 inputs of one place, or one input of 2 x 3 places
def test_a_convolution_is_merged_as_the_matrix_that_its_weight_is(name, kernel):
    torch.manual_seed(0)
    linear = {expert: {"layer": (torch.randn(2, 6), torch.randn(5, 2))} for expert in "ab"}
    shaped = {
        e: {"layer": (f["layer"][0].reshape(2, *kernel), f["layer"][1][:, :, None, None])} for e, f in linear.items()
    }
    found = statistics_for(name)
    expected, (a, b) = merge(name, linear, found)["layer"], merge(name, shaped, found)["layer"]
    assert a.shape == (len(expected[0]), *kernel)
    assert b.shape == (5, len(expected[0]), 1, 1)
    assert torch.equal(a.flatten(1), expected[0])
    assert torch.equal(b.flatten(1), expected[1])


def test_a_narrow_layer_does_not_cut_the_others():
    """One rank for all: a layer of one unit has rank 1, and gets zeros; the others keep the n * r = 2 of theirs."""
    narrow = (torch.tensor([[1.0, 2.0]]), torch.ones(1, 1))
    experts = {name: {"layer": pair, "narrow": narrow} for name, pair in (("one", ONE), ("two", TWO))}
    merged = merge("ties", experts, config=Merge(density=1.0))
    assert {factor.shape for a, b in merged.values() for factor in (a, b.T)} == {(2, 2), (2, 3), (2, 1)}
    assert torch.allclose(merged["narrow"][1] @ merged["narrow"][0], narrow[0], atol=1e-6)
    # signs of (1, 0; 2, 0; 0, 0) and (0, 0; 0, 1; 0, 3) agree: each value is its own expert's
    assert torch.allclose(update(merged), torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0]]), atol=1e-6)


@pytest.mark.parametrize("name", STRATEGIES)
def test_an_update_that_overflows_is_named(name):
    large = {"layer": (torch.full((1, 2), 1e30), torch.full((3, 1), 1e30))}
    said = "Expert two, its update of layer: 6 of 6 values are NaN or infinite; lower train.learning_rate"
    with pytest.raises(SafetyDPOError, match=said):
        merge(name, {"one": {"layer": ONE}, "two": large}, {"layer": WINS})


@pytest.mark.parametrize("other", [(torch.ones(1, 4), torch.ones(3, 1)), (torch.ones(2, 2), torch.ones(3, 2))])
def test_experts_of_other_shapes_are_named(other):
    with pytest.raises(SafetyDPOError, match="layer"):
        merge("linear", {"one": {"layer": (torch.ones(1, 2), torch.ones(3, 1))}, "two": {"layer": other}})
