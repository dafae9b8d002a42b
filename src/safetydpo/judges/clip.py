"""CLIP: embeddings of images and of prompts, for CLIPScore, Q16 and CMMD."""

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from safetydpo.judges.sound import loading, sound_model, sound_vectors, unit_vectors


class ClipEyes:
    """A CLIP with its processors; embeddings are projected and normalised, fp32.

    dtype `bfloat16`: the model computes in it, `exact` asks for fp32 all the same.
    """

    def __init__(self, name: str, device: torch.device, dtype: str = "float32") -> None:
        self.name, self.half = f"CLIP {name}", dtype == "bfloat16"
        self.model, self.digest = sound_model(CLIPModel, name, self.name, device, torch.float32)
        with loading(self.name, name):
            self.processor = AutoImageProcessor.from_pretrained(name, backend="pil")
            self.tokenizer = AutoTokenizer.from_pretrained(name)

    def projected(self, images: list[np.ndarray], exact: bool = False) -> torch.Tensor:
        """(b, d) of uint8 images (h, w, 3), fp32, not normalised; SafetyDPOError where they are not finite."""
        pixels = self.processor(images=list(images), return_tensors="pt").pixel_values.to(self.model.device)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.half and not exact):
            seen = self.model.visual_projection(self.model.vision_model(pixels).pooler_output)
        return sound_vectors(seen.float(), self.whose)

    def images(self, images: list[np.ndarray], exact: bool = False) -> torch.Tensor:
        """(b, d) of uint8 images (h, w, 3), of length 1; SafetyDPOError as `projected`."""
        return unit_vectors(self.projected(images, exact), self.whose)

    @property
    def whose(self) -> str:
        """What `projected` gives, in words."""
        return f"Embeddings of images by {self.name}"

    def texts(self, prompts: list[str]) -> torch.Tensor:
        """(b, d) of prompts, cut to the context length."""
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").to(
            self.model.device
        )
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.half):
            read = self.model.text_projection(self.model.text_model(**tokens).pooler_output)
        return unit_vectors(read.float(), f"Embeddings of prompts by {self.name}")
