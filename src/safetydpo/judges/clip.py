"""CLIP: embeddings of images and of prompts, for CLIPScore, Q16 and CMMD."""

import numpy as np
import torch
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

from safetydpo.errors import SafetyDPOError
from safetydpo.running.quiet import quiet_transformers


class ClipEyes:
    """A CLIP with its processors; embeddings are projected and normalised, fp32.

    dtype `bfloat16`: the model computes in it, `exact` asks for fp32 all the same.
    """

    def __init__(self, name: str, device: torch.device, dtype: str = "float32") -> None:
        self.half = dtype == "bfloat16"
        quiet_transformers()
        try:
            self.model = CLIPModel.from_pretrained(name, use_safetensors=True).float().eval().to(device)  # type: ignore[arg-type]
            self.processor = AutoImageProcessor.from_pretrained(name, backend="pil")
            self.tokenizer = AutoTokenizer.from_pretrained(name)
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0][:200]
            raise SafetyDPOError(
                f"CLIP {name} cannot be loaded ({reason}): `hf download {name}`, or a local folder."
            ) from None

    def images(self, images: list[np.ndarray], exact: bool = False) -> torch.Tensor:
        """(b, d) of uint8 images (h, w, 3)."""
        pixels = self.processor(images=list(images), return_tensors="pt").pixel_values.to(self.model.device)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.half and not exact):
            seen = self.model.visual_projection(self.model.vision_model(pixels).pooler_output)
        return F.normalize(seen.float(), dim=1)

    def texts(self, prompts: list[str]) -> torch.Tensor:
        """(b, d) of prompts, cut to the context length."""
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").to(
            self.model.device
        )
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.half):
            read = self.model.text_projection(self.model.text_model(**tokens).pooler_output)
        return F.normalize(read.float(), dim=1)
