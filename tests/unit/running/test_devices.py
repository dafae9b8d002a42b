"""Devices by name: one that is not here, or not known, is a sentence."""

import pytest
import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.running.devices import device_of


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gpu", "There is no device gpu"),
        ("", "There is no device "),
        ("mps", "torch sees no mps here"),
        ("cuda", "torch sees no GPU here"),
        ("meta", "torch sees no meta here"),
    ],
)
def test_a_device_that_is_not_here_is_a_sentence(monkeypatch, name, said):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(SafetyDPOError, match=said):
        device_of(name)


def test_devices_that_are_here(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert [device_of(name).type for name in ("cpu", "cuda:1", "mps")] == ["cpu", "cuda", "mps"]
    with pytest.raises(SafetyDPOError, match="The device is cuda:2, but torch sees 2 of cuda here"):
        device_of("cuda:2")
