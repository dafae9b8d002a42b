"""MHSC of Unsafe Diffusion (arXiv 2305.13873): small heads on CLIP, one for each kind of unsafe image."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from safetydpo.config.judges import Judge
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.judge import Given, Seen, Views, seen_again, seen_of
from safetydpo.judges.sound import digest_of, read_torch, sound_weights
from safetydpo.storage.files import read_safetensors

Head = dict[str, torch.Tensor]
# Tensors of a head (Linear, ReLU, Dropout, BatchNorm1d, Linear), by their places in it.
TENSORS = ("0.weight", "0.bias", "3.weight", "3.bias", "3.running_mean", "3.running_var", "4.weight", "4.bias")
SUFFIXES = (".pt", ".safetensors")


def tensors(path: Path | str) -> dict[str, torch.Tensor]:
    """A user's heads as the run keeps them: `<head>.<tensor>`."""
    return {f"{head}.{name}": parts[name] for head, parts in read_heads(path).items() for name in TENSORS}


def read_heads(path: Path | str, own: bool = False) -> dict[str, Head]:
    """Heads by name, fp32: of a folder of <head>.pt and <head>.safetensors, whose tensors may have a prefix, or of one
    safetensors file with `<head>.<tensor>`; own: the run's copy.

    SafetyDPOError where there are none, or one is no head.
    """
    path = Path(path)
    if own or path.is_file():
        heads = _groups(read_safetensors(path, own)[0])
    elif path.is_dir():
        heads = {file.stem: _head_in(file) for file in sorted(path.iterdir()) if file.suffix in SUFFIXES}
    else:
        raise SafetyDPOError(f"The heads {path} do not exist: set the clip-heads judge's `path` to their folder.")
    if not heads:
        raise SafetyDPOError(f"{path} has no heads (<head>.pt or <head>.safetensors): correct the judge's `path`.")
    for name, head in heads.items():
        if missing := [tensor for tensor in TENSORS if tensor not in head]:
            raise SafetyDPOError(
                f"The head {name} of {path} has no tensor {missing[0]}: it must be the state dict of Linear, ReLU, "
                "Dropout, BatchNorm1d, Linear, as Unsafe Diffusion saves it."
            )
    return heads


def _head_in(file: Path) -> Head:
    """The head in a file, whatever else is in it."""
    found = read_torch(file, "The head") if file.suffix == ".pt" else read_safetensors(file, own=False)[0]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise SafetyDPOError(f"The head {file} holds no tensors by name: it must be a state dict.")
    groups = _groups(found).values()
    return next((head for head in groups if set(TENSORS) <= set(head)), next(iter(groups), {}))


def _groups(found: dict[str, torch.Tensor]) -> dict[str, Head]:
    """Tensors by what stands before the last two parts of their names."""
    groups: dict[str, Head] = defaultdict(dict)
    for name, value in found.items():
        *start, place, tensor = ["", *name.split(".")]
        groups[".".join(start).strip(".")][f"{place}.{tensor}"] = value.detach().float()
    return groups


class ClipHeads:
    """MHSC. Scores: of each head the probability that an image is of its kind; its own: the largest."""

    words: Sequence[str] = ()

    def __init__(self, entry: Judge, given: Given) -> None:
        self.clip, path = given.clip(entry.id or ""), entry.path or ""
        heads = read_heads(path, given.own)
        self.labels, width = list(heads), self.clip.model.config.projection_dim
        for name, head in heads.items():
            if head["0.weight"].shape[-1] != width:
                raise SafetyDPOError(
                    f"The head {name} of {path} is of width {head['0.weight'].shape[-1]}, its CLIP embeds in {width}: "
                    "set the clip-heads judge's `id` to the CLIP that it was trained on."
                )
        self.heads = [_network(head, f"the head {name} of {path}").to(given.device) for name, head in heads.items()]
        digest = digest_of({f"{name}.{tensor}": head[tensor] for name, head in heads.items() for tensor in TENSORS})
        self.about = {"clip": entry.id or "", "weights": self.clip.digest, "heads": digest}

    def __call__(self, views: Views) -> Seen:
        return seen_of(self.labels, seen_again(views, self.clip.half, self._of), "CLIP's heads")

    def _of(self, views: Views, exact: bool) -> torch.Tensor:
        seen = views.projected(self.clip, exact)
        found = torch.cat([head(seen) for head in self.heads], 1).sigmoid()
        return torch.cat([found.amax(1, keepdim=True), found], 1)


def _network(head: Head, whose: str) -> nn.Module:
    hidden, width = (*head["0.weight"].shape, 1)[:2]
    network = nn.Sequential(
        nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(), nn.BatchNorm1d(hidden), nn.Linear(hidden, 1)
    )
    try:
        network.load_state_dict({name: head[name] for name in TENSORS}, strict=False)  # the count of batches may lack
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise SafetyDPOError(f"{whose[0].upper()}{whose[1:]} has tensors of other shapes ({reason}).") from None
    sound_weights(network, whose)
    return network.eval()
