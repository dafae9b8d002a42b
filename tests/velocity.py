"""Transformers called by hand, one latent and one prompt at a time: what families and methods are tested against."""

import math
from typing import Any

import torch

from safetydpo.config.model import Model

# Of the tiny pipelines: how their schedulers shift sigmas. FLUX.1 dev's by its 16 image tokens, mu on the line from
# (256, 0.5) to (4096, 1.15).
SHIFTS = {"sd3": 3.0, "sd3-t5": 3.0, "flux-dev": math.exp(0.5 + 0.65 * (16 - 256) / 3840), "z-image": 3.0}


def sigmas(family: str, steps: int) -> list[float]:
    """Of even steps from noise to image, shifted; 0 at the end."""
    k, even = SHIFTS[family], [1 - i / steps for i in range(steps + 1)]
    return [k * u / (1 + (k - 1) * u) for u in even]


@torch.no_grad()
def velocity(pipeline: Any, x: torch.Tensor, timestep: float, prompt: str, model: Model) -> torch.Tensor:
    """The velocity noise - image (1, c, h, w) of latents x (1, c, h, w); timestep is 1000 sigma."""
    name, transformer = type(pipeline.transformer).__name__, pipeline.transformer
    at = torch.tensor([float(timestep)])
    if name == "SD3Transformer2DModel":
        states, _, pooled, _ = pipeline.encode_prompt(
            prompt, prompt, prompt, device="cpu", do_classifier_free_guidance=False, **model.call
        )
        return transformer(x, encoder_hidden_states=states, pooled_projections=pooled, timestep=at).sample
    if name == "ZImageTransformer2DModel":  # time from noise to image, and x_0 - noise
        captions, _ = pipeline.encode_prompt([prompt], device="cpu", do_classifier_free_guidance=False, **model.call)
        return -transformer([x[0].unsqueeze(1)], 1 - at / 1000, captions, return_dict=False)[0][0].squeeze(1)[None]
    states, pooled, text_ids = pipeline.encode_prompt(prompt, device="cpu", **model.call)
    _, c, h, w = x.shape
    tokens = x.reshape(c, h // 2, 2, w // 2, 2).permute(1, 3, 0, 2, 4).reshape(1, h * w // 4, 4 * c)
    places = torch.tensor([[0.0, row, column] for row in range(h // 2) for column in range(w // 2)])
    predicted = transformer(
        tokens,
        encoder_hidden_states=states,
        pooled_projections=pooled,
        timestep=at / 1000,
        img_ids=places,
        txt_ids=text_ids,
        guidance=torch.tensor([model.guidance_scale]) if transformer.config.guidance_embeds else None,
    ).sample
    return predicted.reshape(h // 2, w // 2, c, 2, 2).permute(2, 0, 3, 1, 4).reshape(1, c, h, w)
