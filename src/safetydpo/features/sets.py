"""Reading features files (their layout: see `stage`): memory-mapped, so memory does not grow with the data."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.models.families.family import Condition, join_conditions
from safetydpo.storage.files import DIGEST, read_safetensors

SEEDS = "seeds"


class Features:
    """Samples of one or several features files; a lookup reads the rows it needs and no others."""

    def __init__(
        self, ids: list[str], shards: list[dict[str, torch.Tensor]], fingerprint: str = "", family: str = "unet"
    ) -> None:
        self.ids, self.shards, self.fingerprint, self.family = ids, shards, fingerprint, family
        self.roles = tuple(n.removesuffix("_caption") for n in shards[0] if n.endswith("_caption"))
        self.texts = [n for n in shards[0] if n != SEEDS and not n.startswith(tuple(f"{role}_" for role in self.roles))]
        self.flips = f"{self.roles[0]}_flip_mean" in shards[0]
        counts = [len(shard[f"{self.roles[0]}_caption"]) for shard in shards]
        self.starts = [sum(counts[:i]) for i in range(len(counts))]

    def __len__(self) -> int:
        return len(self.ids)

    def first(self, count: int | None) -> "Features":
        """The first samples alone, of which there may be fewer; None: all."""
        if count is None or count >= len(self.ids):
            return self
        return Features(self.ids[:count], self.shards, f"{self.fingerprint}-{count}", self.family)

    def _where(self, sample: int) -> tuple[dict[str, torch.Tensor], int]:
        shard = bisect_right(self.starts, sample) - 1
        return self.shards[shard], sample - self.starts[shard]

    @property
    def latent_shape(self) -> torch.Size:
        """(c, h, w) of a latent."""
        return self.shards[0][f"{self.roles[0]}_mean"].shape[1:]

    @property
    def text_width(self) -> int:
        """Width of the text embeddings."""
        return self.shards[0]["encoder_hidden_states"].shape[-1]

    @cached_property
    def seeds(self) -> list[int] | None:
        """The seed that each sample's images were rendered from; None where they were not rendered here."""
        if any(SEEDS not in shard for shard in self.shards):
            return None
        return torch.cat([shard[SEEDS] for shard in self.shards]).tolist()

    def posterior(self, role: str, sample: int, flip: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and std (c, h, w) of a sample's image, or of its mirror image."""
        shard, row = self._where(sample)
        name = f"{role}_flip" if flip else role
        return shard[f"{name}_mean"][row], shard[f"{name}_std"][row]

    def condition(self, index: Sequence[int], captions: Sequence[str]) -> Condition:
        """Text embeddings (b, ...) of the samples `index`; sample i's prompt of role captions[i], "" the empty one."""
        rows = []
        for sample, caption in zip(index, captions, strict=True):
            shard, row = self._where(sample)
            text = int(shard[f"{caption}_caption"][row]) if caption else -1
            rows.append({name: shard[name][text][None] for name in self.texts})
        return join_conditions(rows)


def read_features(paths: Sequence[Path | str], model: str, check: bool = True) -> Features:
    """Join features files; SafetyDPOError when empty or of another model.

    check: also when they are not what was written or have values that are not finite. One process of a training does
    it, since it reads every byte.
    """
    ids: list[str] = []
    shards: list[dict[str, torch.Tensor]] = []
    digest, family = hashlib.sha256(), ""
    for path in paths:
        tensors, header = read_safetensors(path, check=check)
        if header.get("model") != model:
            raise SafetyDPOError(f"{path} was made with model {header.get('model')}, not {model}: delete it and rerun.")
        if DIGEST not in header:
            raise SafetyDPOError(f"{path} has no digest in its header, so it is not whole: delete it and rerun.")
        family = header["family"]
        digest.update(header[DIGEST].encode())
        part = json.loads(header["ids"])
        ids += part
        if part:
            shards.append(tensors)
    if not ids:
        raise SafetyDPOError(f"{paths[0] if paths else 'features'}: no samples to train on.")
    return Features(ids, shards, digest.hexdigest()[:16], family)
