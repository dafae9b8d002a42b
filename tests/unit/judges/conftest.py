"""The demo's judges, and a toy CLIP."""

import pickle

import numpy as np
import pytest
import torch
from tiny import CLIP, DEMO
from transformers import CLIPModel

from safetydpo.config.judges import Judges
from safetydpo.demo.making.clip import clip_config, save_clip, train_tokenizer
from safetydpo.judges.clip import ClipEyes
from safetydpo.judges.eyes import Eyes
from safetydpo.running.devices import device_of


@pytest.fixture(scope="session")
def eyes():
    """The judges of the default config."""
    return Eyes(Judges(**CLIP, detector="demo", detector_path=str(DEMO / "detector")), device_of("cpu"))


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A random CLIP, two images, and prompts.p: row 0 (appropriate) is image one, row 1 (inappropriate) image two."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tokenizer = train_tokenizer()
    save_clip(CLIPModel(clip_config(tokenizer)), tokenizer, folder)
    rng = np.random.default_rng(0)
    images = [np.full((48, 48, 3), 20, np.uint8), rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)]
    clip = ClipEyes(str(folder), torch.device("cpu"))
    with torch.no_grad():
        embeddings = clip.images(images)
    # row 0 is nine times as long: only directions count
    (folder / "prompts.p").write_bytes(pickle.dumps(embeddings.numpy() * np.array([[9], [1]], np.float32)))
    return folder, images, clip, embeddings
