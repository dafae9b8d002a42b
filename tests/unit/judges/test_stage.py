"""What the check of the judges writes."""

import json
import pickle

import torch
from tiny import CLIP, DEMO

from safetydpo.config.judges import Judges
from safetydpo.judges.q16 import read_q16_prompts
from safetydpo.judges.stage import check_judges


def test_the_pickle_is_read_once_and_kept_as_safetensors(tmp_path):
    prompts = read_q16_prompts(DEMO / "q16.safetensors")
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(prompts.numpy()))
    config = Judges(**CLIP | {"q16_prompts": str(tmp_path / "prompts.p")})
    check_judges(config, tmp_path / "judges.json", tmp_path / "q16.safetensors")
    assert torch.equal(read_q16_prompts(tmp_path / "q16.safetensors"), prompts)
    assert json.loads((tmp_path / "judges.json").read_text())["q16_prompts"] == str(tmp_path / "prompts.p")
