"""People's images as what FID is measured to."""

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from snakes import ROOT
from tiny import CLIP, DEMO_JUDGES

from safetydpo.config.judges import Looks
from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.stage import write_reference
from safetydpo.judges.clip import ClipEyes

# A judge whose weights are not there: it must not be asked.
ABSENT = {"judge": "q16", "name": "absent", "id": "no/such/clip", "path": "no/such/prompts.p"}


@pytest.fixture
def pixels(tmp_path):
    """Seventy images, more than a batch, and two files that are none."""
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 255, (48, 48, 3), dtype=np.uint8) for _ in range(70)]
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    for name in ("05b", "69b"):
        (tmp_path / f"{name}.png").write_bytes(b"no image")
    return pixels


def section(values, features):
    names = ("panel", "clip_score")
    values = {name: values[name] for name in names} | {"features": features}
    return Looks(**values | {"panel": [*values["panel"], ABSENT]})


def test_vectors_of_a_folder_are_clips_whoever_judges(tmp_path, pixels, capsys):
    write_reference(str(tmp_path), section(CLIP, "clip"), "cpu", tmp_path / "out/r.parquet")
    table = pq.read_table(tmp_path / "out/r.parquet")
    assert table.column_names == ["embedding", "features"]
    found = np.stack(table["embedding"].to_pylist())
    with torch.no_grad():
        wanted = ClipEyes(str(ROOT / "resources/demo/clip"), torch.device("cpu")).images(pixels).numpy()
    assert np.allclose(found, wanted, atol=1e-6)
    assert np.array_equal(found, np.stack(table["features"].to_pylist()))
    said = capsys.readouterr().out
    assert said.startswith(
        f"70 images of {tmp_path}\n2 images could not be read and are not in the reference: {tmp_path}/05b"
    )


def test_features_of_a_detector_are_its_own(tmp_path, pixels):
    write_reference(str(tmp_path), section(DEMO_JUDGES, "detector"), "cpu", tmp_path / "out/r.parquet")
    schema = pq.read_schema(tmp_path / "out/r.parquet")
    widths = [schema.field(name).type.list_size for name in ("embedding", "features")]
    assert (len(pixels), widths) == (70, [96, 64])


def test_a_single_image_is_no_reference(tmp_path):
    Image.new("RGB", (48, 48), "red").save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(SafetyDPOError, match="has one image that can be read: FID needs two or more"):
        write_reference(str(tmp_path), section(CLIP, "clip"), "cpu", tmp_path / "out/r.parquet")
    assert not (tmp_path / "out/r.parquet").exists()


def test_a_folder_that_is_none_is_said_before_a_judge_is_loaded(tmp_path):
    with pytest.raises(SafetyDPOError, match="nowhere is not a folder"):
        write_reference(
            "nowhere", section(CLIP | {"clip_score": "no/such/clip"}, "clip"), "cpu", tmp_path / "r.parquet"
        )
