"""Which expert is the most active, against an example worked out by hand."""

import pytest
import torch
from torch import nn

from safetydpo.errors import SafetyDPOError
from safetydpo.merging.coactivation import activation, counting, wins_of

# Two experts of rank 1 on a layer with 2 inputs and 3 units. Updates B A:
#   one = [[1, 0], [2, 0], [0, 0]],  two = [[0, 0], [0, 1], [0, 3]]
ONE = (torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0], [2.0], [0.0]]))
TWO = (torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0], [1.0], [3.0]]))
# Three inputs of one token: |one x| and |two x| by unit are
#   x = (1, 1): (1, 2, 0), (0, 1, 3);  x = (1, 3): (1, 2, 0), (0, 3, 9);  x = (2, 1): (2, 4, 0), (0, 1, 3)
# so unit 0 goes 3 : 0 to one, unit 1 goes 2 : 1 to one, unit 2 goes 0 : 3 to two.
INPUTS = torch.tensor([[[1.0, 1.0]], [[1.0, 3.0]], [[2.0, 1.0]]])
WINS = torch.tensor([[3, 2, 0], [0, 1, 3]])


def test_wins_of_the_hand_example():
    found = wins_of(torch.stack([activation(*ONE, INPUTS), activation(*TWO, INPUTS)]))
    assert torch.equal(found, WINS)


def test_activation_is_the_mean_over_tokens():
    x = torch.tensor([[[1.0, 0.0], [-3.0, 0.0]]])  # |1 * 2| and |-3 * 2|: mean 4 for unit 1
    assert activation(*ONE, x).tolist() == [[2.0, 4.0, 0.0]]


def test_a_convolutions_activation_is_the_mean_over_places():
    """One input channel, kernel 1 x 2, and its places by hand."""
    conv = nn.Conv2d(1, 3, (1, 2), stride=(1, 2))
    a, b = ONE[0].reshape(1, 1, 1, 2), ONE[1].reshape(3, 1, 1, 1)
    x = torch.tensor([[[[1.0, 0.0, -3.0, 0.0]]]])  # places (1, 0) and (-3, 0): the tokens of the test above
    assert activation(a, b, x, conv).tolist() == [[2.0, 4.0, 0.0]]


def test_counting_takes_a_convolution_as_the_update_of_its_weight():
    """Against the convolution by the whole update B A, with stride and padding."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    experts = [(torch.randn(2, 3, 3, 3), torch.randn(5, 2, 1, 1)) for _ in range(3)]
    x = torch.randn(4, 3, 7, 6)
    moved = []
    for a, b in experts:
        update = torch.einsum("or,rikl->oikl", b[:, :, 0, 0], a)
        moved.append(nn.functional.conv2d(x, update, stride=2, padding=1).abs().mean((2, 3)))
    expected = torch.nn.functional.one_hot(torch.stack(moved).argmax(0), 3).sum(0).T
    net = nn.Sequential(conv)
    with counting(net, [{"0": expert} for expert in experts], ["0"]) as wins:
        net(x)
    assert torch.equal(wins["0"], expected)


def test_activations_that_are_not_numbers_win_nothing():
    net = nn.Sequential(nn.Linear(2, 3))
    said = "The experts' activations in 0: 6 of 6 values are NaN or infinite; check model.id"
    with pytest.raises(SafetyDPOError, match=said), counting(net, [{"0": ONE}, {"0": TWO}], ["0"]):
        net(torch.full((1, 1, 2), torch.nan))


def test_counting_hooks_a_network_and_leaves_it_clean():
    net = nn.Sequential()
    net.add_module("layer", nn.Linear(2, 3))
    with counting(net, [{"layer": ONE}, {"layer": TWO}], ["layer"]) as wins:
        net(INPUTS[:2])
        net(INPUTS[2:])
    assert torch.equal(wins["layer"], WINS)
    assert not net.layer._forward_pre_hooks
