"""Folders of people's images."""

import numpy as np
import pytest
from PIL import Image

from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation import folder
from safetydpo.evaluation.folder import Folder, left_out


@pytest.fixture
def path(tmp_path):
    """Six images of one size."""
    for i in range(6):
        Image.fromarray(np.full((48, 48, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def test_batches_are_of_images_that_are_there_and_end_at_their_bytes(path, monkeypatch):
    Image.new("RGB", (48, 48)).save(path / "A.PNG")
    (path / "._0.png").write_bytes(b"a Mac's notes on 0.png")
    (path / "x.png").mkdir()
    images = Folder(str(path), 4)
    names = [*(f"{i}.png" for i in range(6)), "A.PNG"]
    assert [batch for batch, _ in images] == [names[:4], names[4:]]
    monkeypatch.setattr(folder, "BYTES_AT_ONCE", 48 * 48 * 3 * 3 - 1)
    assert [batch for batch, _ in images] == [names[:2], names[2:4], names[4:6], names[6:]]
    monkeypatch.setattr(folder, "BYTES_AT_ONCE", 1)  # one image is always taken
    assert [len(batch) for batch, _ in images] == [1] * 7
    assert images.broken == []


def test_what_cannot_be_read_is_left_out_and_said(path):
    (path / "2.png").write_bytes(b"no image")
    images = Folder(str(path), 4)
    assert [batch for batch, _ in images] == [["0.png", "1.png", "3.png", "4.png"], ["5.png"]]
    said = left_out([images, images], "the score")
    assert said.startswith(
        f"2 images could not be read and are not in the score: {path}/2.png cannot be read as an image"
    )
    assert left_out([Folder(str(path), 4)], "the score") == ""


def test_a_folder_of_which_nothing_can_be_read_is_an_error(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    with pytest.raises(SafetyDPOError, match=rf"^None of the 2 images of {tmp_path} can be read: {tmp_path}/a\.png"):
        list(Folder(str(tmp_path), 4))
