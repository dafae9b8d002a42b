"""The published commands as scripts."""

import subprocess
import sys

from snakes import ROOT


def test_the_published_command_lines_run_as_scripts():
    for script, flag in (("inference.py", "--guidance_scale"), ("test.py", "--target_folder")):
        done = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, flag in done.stdout) == (0, True)
