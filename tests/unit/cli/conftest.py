"""Rendering by the published command."""

import numpy as np
import pytest
from PIL import Image

from safetydpo.cli import inference_main

# Steps as the published command reads them, as a float.
STEPS = ["--num_inference_steps", "2.0", "--guidance_scale", "2", "--device", "cpu"]


def called(main, capsys, *args):
    """Exit status (or its sentence) and what was printed."""
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in args])
    return ended.value.code, capsys.readouterr().out


@pytest.fixture
def rendered(tiny, tmp_path, capsys):
    """Render the rows of a csv; returns the status, what was said, and name -> image."""

    def run(text, *more, model=None, folder="out", name="p.csv"):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        args = [
            "--model_path",
            model or tiny.id,
            "--prompts_path",
            path,
            "--save_path",
            tmp_path / folder,
            *STEPS,
            *more,
        ]
        status, said = called(inference_main, capsys, *args)
        images = {p.name: np.asarray(Image.open(p)).astype(int) for p in sorted((tmp_path / folder).glob("**/*.png"))}
        return status, said, images

    return run
