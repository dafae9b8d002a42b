"""One process at a time in a folder."""

import subprocess
import sys

from safetydpo.storage.locks import alone


def test_one_training_waits_for_another_in_the_same_folder(tmp_path):
    code = (
        f"import time; from safetydpo.storage.locks import alone\n"
        f"with alone({str(tmp_path / 'c')!r}): print('in', flush=True); time.sleep(0.5)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "in\n"
    with alone(tmp_path / "c"):
        assert other.wait() == 0
