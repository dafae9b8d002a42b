"""Progress in a log file: lines, not redraws."""

import io
import sys

from safetydpo.running import progress as module
from safetydpo.running.progress import progress


def test_a_log_gets_whole_lines_with_the_time_left(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    bar = progress(range(3), "ring", initial=2, total=5)
    for _ in bar:
        bar.set_postfix(loss="0.5", refresh=False)
    lines = log.getvalue().splitlines()
    assert lines[0].startswith("ring:  40%")
    assert lines[-1].startswith("ring: 100%")
    assert "loss=0.5" in lines[-1]
    assert "\r" not in log.getvalue()


def test_a_terminal_gets_a_bar_that_redraws_itself(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress(range(3), "ring")) == [0, 1, 2]
    assert "\r" in terminal.getvalue()


def test_a_log_is_written_at_most_once_a_minute(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    list(progress(range(1000), "ring"))
    assert len(log.getvalue().splitlines()) == 2  # begin and end
    assert module.EVERY == 60
