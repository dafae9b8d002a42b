"""Images as cells of Parquet files."""

import numpy as np
import pyarrow.parquet as pq

from safetydpo.storage.files import read_parquet
from safetydpo.storage.images import png, unpng, write_images


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
