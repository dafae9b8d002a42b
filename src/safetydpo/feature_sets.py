"""Reading features files (their layout: see `features`)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.files import read_safetensors


@dataclass
class Features:
    """Samples of one or several features files, on one device."""

    ids: list[str]
    tensors: dict[str, torch.Tensor]
    roles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def posterior(self, role: str, index: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and std of the samples `index`."""
        return self.tensors[f"{role}_mean"][index], self.tensors[f"{role}_std"][index]

    def condition(self, index: torch.Tensor, dropped: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Text embeddings of the samples' captions; of the empty prompt where `dropped` (b,) is true."""
        rows = self.tensors["caption"][index]
        if dropped is not None:
            empty = torch.full_like(rows, len(self.tensors["encoder_hidden_states"]) - 1)
            rows = torch.where(dropped, empty, rows)
        return {k: self.tensors[k][rows] for k in ("encoder_hidden_states", "text_embeds") if k in self.tensors}


def read_features(paths: Sequence[Path | str], model: str) -> Features:
    """Join features files; SafetyDPOError when empty, of another model, or with values that are not finite."""
    ids: list[str] = []
    parts: dict[str, list[torch.Tensor]] = {}
    captions = 0
    for path in paths:
        tensors, header = read_safetensors(path)
        if header.get("model") != model:
            raise SafetyDPOError(f"{path} was made with model {header.get('model')}, not {model}: delete it and rerun.")
        bad = [k for k, v in tensors.items() if v.is_floating_point() and not torch.isfinite(v).all()]
        if bad:
            raise SafetyDPOError(
                f"{path} has values that are not finite in {bad[0]}: delete it and rerun (try dtype float32)."
            )
        ids += json.loads(header["ids"])
        tensors["caption"] = tensors["caption"] + captions
        captions += len(tensors["encoder_hidden_states"])
        for name, tensor in tensors.items():
            parts.setdefault(name, []).append(tensor)
    if not ids:
        raise SafetyDPOError(f"{paths[0] if paths else 'features'}: no samples to train on.")
    roles = tuple(name.removesuffix("_mean") for name in parts if name.endswith("_mean"))
    return Features(ids, {k: torch.cat(v) for k, v in parts.items()}, roles)
