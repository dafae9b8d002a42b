"""The training loop of the demo worlds' models: its schedule, and that a killed run goes on as if nothing had been."""

import numpy as np
import pytest
import torch
from torch import nn

from safetydpo.demo.making.fit import Schedule, fit


def test_the_rate_falls_along_a_cosine_to_its_end():
    falls, stays = Schedule(300, 1.0), Schedule(300, 1.0, end=1.0)
    half_way = Schedule(300, 1.0, end=0.5)
    assert [falls.factor(step) for step in (0, 49, 100, 200, 300)] == pytest.approx([0.01, 0.5, 1, 0.5, 0])
    assert [stays.factor(step) for step in (0, 49, 100, 200, 300)] == pytest.approx([0.01, 0.5, 1, 1, 1])
    assert half_way.factor(200) == pytest.approx(0.75)


@pytest.fixture
def learner():
    """A small model that learns to double its input, and what made it so."""

    def make(fails_at: int | None = None):
        torch.manual_seed(0)
        model = nn.Linear(3, 3)

        def loss_of(step: int, rank: int) -> torch.Tensor:
            if step == fails_at:
                raise InterruptedError
            x = torch.from_numpy(np.random.default_rng((step, rank)).normal(size=(8, 3))).float()
            return ((model(x) - 2 * x) ** 2).mean()

        return model, loss_of

    return make


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_a_killed_training_ends_as_an_unbroken_one(learner, tmp_path, end):
    plan = Schedule(9, 0.1, warmup=2, ema=0.9, checkpoint_every=3, end=end)
    whole, loss_of = learner()
    fit("m", whole, loss_of, plan, tmp_path / "whole")
    broken, loss_of = learner(fails_at=7)
    with pytest.raises(InterruptedError):
        fit("m", broken, loss_of, plan, tmp_path / "broken")
    again, loss_of = learner()
    nn.init.zeros_(again.weight)  # what is in the checkpoint counts, not how it begins now
    fit("m", again, loss_of, plan, tmp_path / "broken")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(whole.weight, broken.weight)
