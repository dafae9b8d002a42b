"""Images by reference: files, and rows of Parquet shards."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.brought import brought, references


def png(value):
    written = io.BytesIO()
    Image.fromarray(np.full((2, 3, 3), value, np.uint8)).save(written, "PNG")
    return written.getvalue()


@pytest.fixture
def shard(tmp_path):
    """Five images, 0 to 4, in row groups of two; the last has no name."""
    rows = [{"image": {"bytes": png(i), "path": f"{i}.png" if i < 4 else None}, "caption": "x"} for i in range(5)]
    path = tmp_path / "train-0.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=2)
    return path


def test_rows_of_a_shard_are_found_by_name_and_read_by_reference(shard):
    found = references(shard)
    assert list(found) == ["0.png", "1.png", "2.png", "3.png"]
    for name in ("3.png", "0.png", "2.png", "1.png"):
        assert (brought(found[name]) == int(name[0])).all()
    assert brought(f"{shard}#4").shape == (2, 3, 3)


def test_a_file_is_read_whatever_its_name(tmp_path):
    (tmp_path / "a#1.png").write_bytes(png(7))
    assert (brought(str(tmp_path / "a#1.png")) == 7).all()


def test_a_table_without_images_has_no_references(tmp_path):
    pq.write_table(pa.table({"caption": ["x"]}), tmp_path / "t.parquet")
    assert references(tmp_path / "t.parquet") == {}


def test_what_cannot_be_read_is_said_with_its_reference(shard, tmp_path):
    rows = pq.read_table(shard).to_pylist()
    rows[0]["image"] = {"bytes": b"\x89PNG", "path": "0.png"}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "bad.parquet")
    with pytest.raises(SafetyDPOError, match=r"bad\.parquet#0 cannot be read as an image"):
        brought(f"{tmp_path / 'bad.parquet'}#0")
    (tmp_path / "half.parquet").write_bytes(shard.read_bytes()[:400])
    for read in (lambda: references(tmp_path / "half.parquet"), lambda: brought(f"{tmp_path / 'half.parquet'}#0")):
        with pytest.raises(SafetyDPOError, match=r"half\.parquet is not a whole Parquet file .*: replace it"):
            read()
