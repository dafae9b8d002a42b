"""A first signal is a request, a later one ends at once."""

import signal

import pytest

from safetydpo.running.interrupts import Interrupt


def test_a_second_signal_ends_at_once():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process ignores it
    with Interrupt() as interrupt:
        for _ in range(3):  # passed on by several: one request
            signal.raise_signal(signal.SIGINT)
        assert interrupt.asked == signal.SIGINT
        interrupt.since -= 10
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.signal(signal.SIGINT, before) == signal.default_int_handler
