"""That the judges can be loaded, said before anything is rendered or trained."""

import json
from pathlib import Path

import torch

from safetydpo.config.judges import Judges
from safetydpo.judges.eyes import Eyes
from safetydpo.judges.q16 import read_q16_prompts
from safetydpo.storage.files import write_safetensors, write_text


def check_judges(config: Judges, out: Path | str, q16: Path | str) -> None:
    """Load every judge, have it look, and write what they are, and Q16's prompts as safetensors, so that a pickle is
    read once.

    Raises SafetyDPOError when one is not to be had or does not see, or Q16's prompts are of another CLIP: before
    anything expensive.
    """
    Eyes(config, torch.device("cpu"), own=False).check()
    write_safetensors({"prompts": read_q16_prompts(config.q16_prompts)}, q16, {"source": config.q16_prompts})
    write_text(json.dumps(config.model_dump(), indent=1) + "\n", out)
