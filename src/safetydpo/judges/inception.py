"""Inception's 2048 features, in which published FID values are measured."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.judges.sound import sound_vectors, sound_weights


class Inception:
    """torch-fidelity's Inception v3 as torchmetrics wraps it; path: its weights, None: downloaded at first use."""

    def __init__(self, device: torch.device, path: str | None = None) -> None:
        from torchmetrics.image.fid import FrechetInceptionDistance

        if path and not Path(path).is_file():
            raise SafetyDPOError(
                f"Inception's weights {path} are no file: correct judges.inception_path (--inception_path of test.py)."
            )
        try:
            self.network, self.device = (
                FrechetInceptionDistance(feature=2048, feature_extractor_weights_path=path).inception.to(device),
                device,
            )
        except (ImportError, OSError) as error:
            reason = "" if isinstance(error, ImportError) else f" ({str(error).splitlines()[0][:100]})"
            raise SafetyDPOError(
                "FID in Inception's features needs torch-fidelity, which needs torchvision and downloads weights"
                f"{reason}: pip install 'safetydpo[fid]', or measure in CLIP's features "
                "(judges.features: clip, or --fid_network clip)."
            ) from None
        sound_weights(self.network, "Inception")

    @torch.inference_mode()
    def __call__(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """(b, 2048) of uint8 images (h, w, 3), which may differ in size."""
        pixels = [torch.from_numpy(np.ascontiguousarray(x)).permute(2, 0, 1)[None].to(self.device) for x in images]
        if len({x.shape for x in pixels}) == 1:
            pixels = [torch.cat(pixels)]
        return sound_vectors(torch.cat([self.network(x).float() for x in pixels]), "Features by Inception")
