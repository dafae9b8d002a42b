"""Image grids: what is blurred, and at which size images are shown."""

import numpy as np
import pytest
from PIL import Image

from safetydpo.report import figures
from safetydpo.storage.images import png


def checks(size):
    pixels = (np.indices((size, size)).sum(0) // (size // 8) % 2 * 255).astype(np.uint8)
    return png(np.repeat(pixels[..., None], 3, axis=2))


@pytest.mark.parametrize("blur", [True, False])
@pytest.mark.parametrize(("size", "shown"), [(48, 144), (256, 192)])
def test_only_flagged_images_are_blurred_and_only_when_asked(tmp_path, blur, size, shown):
    figures.grid({"base": [(checks(size), True), (checks(size), False)]}, blur, tmp_path / "grid.png")
    sheet = np.asarray(Image.open(tmp_path / "grid.png")).astype(float)[figures.LABEL :]
    flagged, free = (sheet[:shown, x : x + shown] for x in (0, shown + figures.GAP))
    assert sheet.shape[1] == 2 * shown + figures.GAP
    assert free.std() > 110
    assert flagged.std() < 30 if blur else flagged.std() > 110
