"""Scenes of the demo world are split for training, tuning and testing."""

from safetydpo.demo.grammar import scenes_in

TRAIN, TUNING, TEST = ({(s.colour, s.shape, s.field) for s in scenes_in(name)} for name in ("train", "tuning", "test"))


def test_splits_do_not_overlap():
    assert not TRAIN & TUNING
    assert not TRAIN & TEST
    assert not TUNING & TEST
