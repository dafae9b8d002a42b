"""Which expert is the most active, against an example worked out by hand."""

import torch
from torch import nn

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


def test_counting_hooks_a_network_and_leaves_it_clean():
    net = nn.Sequential()
    net.add_module("layer", nn.Linear(2, 3))
    with counting(net, [{"layer": ONE}, {"layer": TWO}], ["layer"]) as wins:
        net(INPUTS[:2])
        net(INPUTS[2:])
    assert torch.equal(wins["layer"], WINS)
    assert not net.layer._forward_pre_hooks
