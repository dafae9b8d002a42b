"""Unified Concept Editing (arXiv 2308.14761): cross-attention keys and values changed in closed form."""

from typing import Any

import torch

from safetydpo.baselines.erasure import Erasure
from safetydpo.config.baselines import Uce
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.models.text_encoder import encode_prompts
from safetydpo.storage.finite import finite

PRECISION = 1e-12  # a matrix of a larger condition number has no inverse worth the name in double precision


def edited(
    weight: torch.Tensor, erase: torch.Tensor, guide: torch.Tensor, preserve: torch.Tensor, config: Uce
) -> torch.Tensor:
    """W' of the paper's equation 7 for one matrix; SafetyDPOError where rounding would decide it.

    weight: (out, d); erase: (n, d), embeddings of the concepts; guide: (d,), whose values they get; preserve: (m, d).
    """
    w, c, p = weight.double(), erase.double(), preserve.double()
    keep, erases, preserves = config.keep_scale, config.erase_scale, config.preserve_scale
    values = (w @ guide.double())[:, None].expand(-1, len(c))
    left = keep * w + erases * values @ c + preserves * (w @ p.T) @ p
    right = keep * torch.eye(w.shape[1], dtype=w.dtype, device=w.device) + erases * c.T @ c + preserves * p.T @ p
    if not keep > PRECISION * float(right.trace()):  # the smallest eigenvalue is `keep`, the largest at most the trace
        raise SafetyDPOError(
            f"uce: keep_scale {keep:g} is nothing beside erase_scale {erases:g} and preserve_scale {preserves:g}: the "
            "matrix cannot be inverted; raise uce.keep_scale."
        )
    changed = torch.linalg.solve(right, left, left=False).to(weight.dtype)
    return finite(changed, "uce: a changed weight", "the weights of the model are damaged")


def subject_embeddings(pipeline: Any, prompts: list[str], model: Model) -> torch.Tensor:
    """Embedding (n, d) of each prompt's last word piece; of the empty prompt, that of the start token."""
    states = encode_prompts(pipeline, prompts, model)["encoder_hidden_states"]
    limit = states.shape[1] - 1
    positions = [min(len(pipeline.tokenizer(text, add_special_tokens=False).input_ids), limit) for text in prompts]
    return torch.stack([state[position] for state, position in zip(states, positions, strict=True)])


@torch.no_grad()
def erase(erasure: Erasure) -> dict[str, torch.Tensor]:
    """The changed weights: to_k and to_v of every cross-attention.

    Prompts to preserve keep the values of their last word, as the empty prompt does.
    """
    pipeline, config, model = erasure.pipeline, erasure.config.uce, erasure.model
    device, preserve = pipeline.unet.device, [*config.preserve, *erasure.retained]
    erased = subject_embeddings(pipeline, erasure.config.erased, model).to(device)
    preserved = subject_embeddings(pipeline, ["", *preserve], model).to(device)
    guide = subject_embeddings(pipeline, [config.guide], model)[0].to(device)
    return {
        name: edited(weight, erased, guide, preserved, config).cpu()
        for name, weight in pipeline.unet.named_parameters()
        if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))
    }
