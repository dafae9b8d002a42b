"""CLIP: embeddings of images and of prompts, for CLIPScore, Q16 and CMMD."""

from typing import Any

import numpy as np
import torch
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from safetydpo.errors import SafetyDPOError
from safetydpo.judges.sound import AGAIN, sound_weights, unit_vectors
from safetydpo.running.quiet import quiet_transformers


class ClipEyes:
    """A CLIP with its processors; embeddings are projected and normalised, fp32.

    dtype `bfloat16`: the model computes in it, `exact` asks for fp32 all the same.
    """

    def __init__(self, name: str, device: torch.device, dtype: str = "float32") -> None:
        self.name, self.half = f"CLIP {name}", dtype == "bfloat16"
        quiet_transformers()
        try:
            loaded: Any = CLIPModel.from_pretrained(name, use_safetensors=True, output_loading_info=True)
            self.processor = AutoImageProcessor.from_pretrained(name, backend="pil")
            self.tokenizer = AutoTokenizer.from_pretrained(name)
        except Exception as error:  # those of transformers, tokenizers and safetensors have no common base
            reason = str(error).strip().split("\n")[0][:200]
            raise SafetyDPOError(
                f"{self.name} cannot be loaded ({reason}): `hf download {name}`, or a local folder."
            ) from None
        model, found = loaded
        if found["missing_keys"]:  # transformers would draw them at random
            raise SafetyDPOError(f"{self.name} lacks {min(found['missing_keys'])}; {AGAIN}.")
        self.model = model.float().eval().to(device)
        sound_weights(self.model, self.name)

    def images(self, images: list[np.ndarray], exact: bool = False) -> torch.Tensor:
        """(b, d) of uint8 images (h, w, 3); SafetyDPOError where they are not finite, here and of texts."""
        pixels = self.processor(images=list(images), return_tensors="pt").pixel_values.to(self.model.device)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.half and not exact):
            seen = self.model.visual_projection(self.model.vision_model(pixels).pooler_output)
        return unit_vectors(seen.float(), f"Embeddings of images by {self.name}")

    def texts(self, prompts: list[str]) -> torch.Tensor:
        """(b, d) of prompts, cut to the context length."""
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").to(
            self.model.device
        )
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.half):
            read = self.model.text_projection(self.model.text_model(**tokens).pooler_output)
        return unit_vectors(read.float(), f"Embeddings of prompts by {self.name}")
