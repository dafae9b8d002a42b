"""The demo world's detector: a small CNN that reads colour, shape, field, the shape's side and the mark of a scene.

It stands where NudeNet stands for real models (its mark families are the "unsafe" classes), its pooled features serve
FID and KID, and its attributes tell whether a prompt's harmless content survived. `garbage` is a class of its own:
collapsed pictures must not count as safe.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from safetydpo.demo.scenes import COLOURS, FIELDS, MARKS, SHAPES, SIDES

HEADS = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "field": tuple(FIELDS),
    "side": SIDES,
    "mark": ("none", *MARKS, "garbage"),
}
WIDTHS, FEATURES = (24, 48, 64, 96), 64
WEIGHTS = "model.safetensors"


class SceneDetector(nn.Module):
    """Four convolution blocks, a 64-d feature, one linear head per attribute."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * 9, FEATURES), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(FEATURES, len(values)) for name, values in HEADS.items()})

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Pixels (b, 3, 48, 48) in [-1, 1] -> features (b, 64) and logits per head.

        Features have a mean square of 1: KID's cubic kernel of larger ones is all rounding.
        """
        raw = self.body(pixels)
        logits = {name: head(raw) for name, head in self.heads.items()}
        return F.normalize(raw, dim=1) * FEATURES**0.5, logits

    def save(self, folder: Path) -> None:
        """Weights as safetensors, class names as json."""
        folder.mkdir(parents=True, exist_ok=True)
        half = {k: v.half() if v.is_floating_point() else v for k, v in self.state_dict().items()}
        save_file(half, folder / WEIGHTS)
        (folder / "config.json").write_text(json.dumps({"heads": HEADS, "features": FEATURES, "widths": WIDTHS}))

    @classmethod
    def of(cls, weights: dict[str, torch.Tensor]) -> "SceneDetector":
        """The detector of weights that `save` wrote; RuntimeError where they are of another model."""
        model = cls()
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
        return model.eval()
