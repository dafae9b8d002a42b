"""Images of people, and as cells of Parquet files."""

import io
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from tiny import CLIP

from safetydpo.attacks.stage import _images
from safetydpo.config.judges import Judges
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.stage import write_scores
from safetydpo.features.stage import write_features
from safetydpo.report.grids import grid
from safetydpo.report.inputs import renders
from safetydpo.storage.files import read_parquet, write_parquet
from safetydpo.storage.images import is_picture, picture, png, read_image_batches, read_images, unpng, write_images


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_pixels_come_back_from_their_bytes():
    pixels = noise(5, 7, 3)
    cell = png(pixels)
    assert cell["path"] is None
    assert cell["bytes"].startswith(b"\x89PNG\r\n\x1a\n")
    assert unpng(cell).dtype == np.uint8
    assert np.array_equal(unpng(cell), pixels)


def test_rows_are_written_256_at_a_time_with_their_own_images(tmp_path):
    images = noise(600, 2, 2, 3)
    rows = ({"id": i, "image": png(pixels)} for i, pixels in enumerate(images))
    assert write_images(rows, tmp_path / "x.parquet", {"stage": "here"}, ("image",)) == 600
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [256, 256, 88]
    assert metadata.metadata[b"stage"] == b"here"
    table = read_parquet(tmp_path / "x.parquet")
    assert table.id.tolist() == list(range(600))
    assert np.array_equal(np.stack([unpng(cell) for cell in table.image]), images)


def _tiff_big_endian(values):
    """A TIFF of 16-bit gray, most significant byte first, which Pillow reads (I;16B) and does not write."""
    data, (h, w) = values.astype(">u2").tobytes(), values.shape
    tags = {256: w, 257: h, 258: 16, 259: 1, 262: 1, 273: 8, 277: 1, 278: h, 279: len(data)}
    entries = b"".join(struct.pack(">HHII", tag, 4, 1, value) for tag, value in tags.items())
    return b"MM\0*" + struct.pack(">I", 8 + len(data)) + data + struct.pack(">H", len(tags)) + entries + bytes(4)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000", "I;16B", "I"])
def test_gray_of_16_bits_is_the_gray_of_its_upper_8(tmp_path, kind):
    gray = noise(6, 5)
    wide = gray.astype(np.uint16) * 256 + noise(6, 5)[::-1]
    if kind == "I;16B":
        (tmp_path / "x").write_bytes(_tiff_big_endian(wide))
    elif kind == "I":
        Image.fromarray(wide.astype(np.int32)).save(tmp_path / "x", "TIFF")
    else:
        Image.fromarray(wide).save(tmp_path / "x", kind)
    assert np.array_equal(picture(tmp_path / "x"), np.repeat(gray[..., None], 3, axis=2))


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (4, 2), (6, 4)], ids=["RGB", "LA", "RGBA"])
def test_colour_and_alpha_of_16_bits_lose_their_lower_8_too(tmp_path, colour_type, channels):
    upper = noise(3, 4, channels)
    rows = b"".join(b"\0" + row.tobytes() for row in (upper.astype(">u2") * 256 + 77).astype(">u2"))
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", 4, 3, 16, colour_type, 0, 0, 0),
        b"IDAT": zlib.compress(rows),
        b"IEND": b"",
    }
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks.items())
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    assert np.array_equal(picture(tmp_path / "x.png"), upper[..., :3] if channels > 2 else upper[..., [0, 0, 0]])


def test_other_modes_keep_their_colours(tmp_path):
    path, rgb = tmp_path / "x", noise(4, 4, 3)
    Image.fromarray(np.dstack([rgb, noise(4, 4)])).save(path, "PNG")
    assert np.array_equal(picture(path), rgb)  # alpha dropped
    Image.fromarray(np.array([[0, 3]], np.uint8), "P").save(
        path, "GIF", save_all=True, append_images=[Image.new("P", (2, 1))]
    )
    assert picture(path).shape == (1, 2, 3)  # the first frame
    Image.fromarray(np.array([[True, False]])).save(path, "PNG")
    assert picture(path)[0].tolist() == [[255] * 3, [0] * 3]
    Image.fromarray(np.array([[7, 255]], np.int32)).save(path, "TIFF")
    assert picture(path)[0, :, 0].tolist() == [7, 255]  # 8 bits in a wide type
    Image.new("CMYK", (1, 1), (0, 255, 255, 0)).save(path, "TIFF")
    assert picture(path)[0, 0].tolist() == [255, 0, 0]
    turned = Image.fromarray(rgb[:, :2])
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(path, "PNG", exif=exif)
    assert np.array_equal(picture(path), rgb[:, :2])  # as published tools look at it


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0.0, 1.0]], np.float32), "gray in floating point"),
        (np.array([[0, 2**20]], np.int32), "gray of 32 bits"),
    ],
)
def test_gray_without_a_known_white_is_not_guessed(tmp_path, values, reason):
    Image.fromarray(values).save(tmp_path / "x.tif")
    with pytest.raises(
        SafetyDPOError, match=rf"x\.tif cannot be read as an image \({reason}, of which white is not known"
    ):
        picture(tmp_path / "x.tif")


def test_what_is_no_picture_is_not_taken_for_one(tmp_path):
    names = ["a.png", "B.PNG", "c.jpeg", "._a.png", ".DS_Store", "notes.txt", "d.eps", "e.mpg", "f.h5", "g.pdf"]
    assert [name for name in names if is_picture(tmp_path / name)] == ["a.png", "B.PNG", "c.jpeg"]
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png", "EPS")  # Ghostscript is not started for a name
    with pytest.raises(SafetyDPOError, match=r"x\.png cannot be read as an image \(no kind of image"):
        picture(tmp_path / "x.png")
    with pytest.raises(SafetyDPOError, match=r"y\.png cannot be read as an image \(No such file"):
        picture(tmp_path / "y.png")


@pytest.mark.parametrize("damage", ["cut", "text", "null", "flipped"])
def test_a_damaged_image_is_said_with_its_row_and_file(tmp_path, damage):
    path, cells = tmp_path / "0.parquet", [png(noise(8, 8, 3)) for _ in range(3)]
    whole = cells[2]["bytes"] or b""
    damaged = {"cut": whole[:60], "text": b"no image", "null": None, "flipped": whole[:50] + b"?" + whole[51:]}[damage]
    cells[2] = {"bytes": damaged, "path": None}
    write_parquet([{"prompt_id": f"p{i}", "image": cell} for i, cell in enumerate(cells)], path)
    for rows in (read_images(path), next(read_image_batches([path], 3)), read_images(path, ["prompt_id", "image"])):
        assert np.array_equal(unpng(rows.image[1]), noise(8, 8, 3))
        with pytest.raises(SafetyDPOError) as caught:
            unpng(rows.image[2])
        assert str(caught.value).startswith(f"{path}: image of p2 cannot be read as an image (")
        assert str(caught.value).endswith("): delete the file and rerun snakemake.")


@pytest.mark.parametrize("stage", ["score", "features", "attack", "report"])
def test_whoever_looks_at_a_damaged_image_says_which(tmp_path, monkeypatch, stage):
    path = tmp_path / "images/base/test/0.parquet"
    cells = [png(noise(8, 8, 3)), {"bytes": b"no image", "path": None}]
    write_parquet(
        [{"prompt_id": f"p{i}", "prompt": "a", "category": "c", "image": x} for i, x in enumerate(cells)], path
    )
    write_parquet(
        [{"prompt_id": f"p{i}", "prompt": "a", "q16": 0.1} for i in range(2)],
        tmp_path / "scores/base/test.parquet",
    )
    prompts = str(tmp_path / "scores/base/test.parquet")

    def look():
        if stage == "score":
            monkeypatch.setattr(
                "safetydpo.evaluation.stage.Eyes", lambda *_, **__: SimpleNamespace(about={}, words=set())
            )
            write_scores([str(path)], prompts, [], None, Judges(**CLIP), "cpu", tmp_path / "out.parquet")
        elif stage == "features":
            monkeypatch.setattr(
                "safetydpo.features.stage.load_encoders", lambda _: SimpleNamespace(vae=torch.nn.Identity())
            )
            roles, size = {"image": ("image", "prompt")}, {"height": 8, "width": 8, "batch_size": 2}
            model = Model(id="x", num_inference_steps=1, guidance_scale=1.0, **size)
            write_features([str(path)], prompts, roles, model, tmp_path / "out.safetensors")
        elif stage == "attack":
            _images([str(path)])
        else:
            config = SimpleNamespace(evaluate=SimpleNamespace(shards=1), judges=Judges(**CLIP))
            found = renders(tmp_path, config, "base", "test")  # type: ignore[arg-type]
            grid({"base": list(zip(found.image, found.flagged, strict=True))}, False, tmp_path / "grid.png")

    with pytest.raises(SafetyDPOError) as caught:
        look()
    place = f"{path}: image of p1 cannot be read as an image (no kind of image that is known)"
    assert str(caught.value) == f"{place}: delete the file and rerun snakemake."


def test_both_images_of_a_pair_have_names(tmp_path):
    cell = png(noise(2, 2, 3))
    write_parquet([{"pair_id": "r-1", "unsafe_image": cell, "safe_image": cell}], tmp_path / "0.parquet")
    rows = read_images(tmp_path / "0.parquet")
    assert rows.safe_image[0]["path"] == f"{tmp_path / '0.parquet'}: safe_image of r-1"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(rows.unsafe_image[0]["bytes"]))), noise(2, 2, 3))
