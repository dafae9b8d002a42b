"""Files that are whole or not there, and say what made them."""

import resource

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.files import (
    made_by,
    read_parquet,
    read_safetensors,
    whole_file,
    write_parquet,
    write_safetensors,
    write_text,
)


def test_truncated_files_are_named(tmp_path):
    write_parquet([{"a": 1}], tmp_path / "t.parquet")
    write_safetensors({"a": torch.ones(100)}, tmp_path / "t.safetensors", {})
    for name, read in (("t.parquet", read_parquet), ("t.safetensors", read_safetensors)):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(SafetyDPOError, match=rf"{path} is not a whole .* file .*: delete it and rerun snakemake"):
            read(path)
        path.unlink()
        with pytest.raises(SafetyDPOError, match="is missing: rerun snakemake"):
            read(path)


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail():
        with whole_file(tmp_path / "x.parquet") as temporary:
            temporary.write_text("begun")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SafetyDPOError, match=r"Cannot write .*: File exists\. Free space or make the folder writable"):
        write_parquet([{"a": 1}], tmp_path / "file/x.parquet")


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_text("x" * 100_000, folder / "x.txt"),
        lambda folder: write_parquet([{"a": np.random.default_rng(0).bytes(100_000)}], folder / "x.parquet"),
        lambda folder: write_safetensors({"a": torch.zeros(100_000)}, folder / "x.safetensors", {}),
    ],
    ids=["text", "parquet", "safetensors"],
)
def test_a_disk_that_fills_up_is_said(tmp_path, write):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the kernel refuses the rest of a write, as a full disk
    try:
        with pytest.raises(SafetyDPOError, match=r"Cannot write .*: .*File too large.*Free space"):
            write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert list(tmp_path.iterdir()) == []


def test_headers_tell_the_stage(tmp_path):
    write_parquet([{"a": 1}], tmp_path / "x.parquet", made_by("prompts", seed=4))
    assert b'"stage": "prompts"' in pq.read_schema(tmp_path / "x.parquet").metadata[b"safetydpo"]


def test_a_missing_column_is_not_called_damage(tmp_path):
    write_parquet([{"a": 1}], tmp_path / "a.parquet")
    with pytest.raises(SafetyDPOError, match="has no column"):
        read_parquet(tmp_path / "a.parquet", ["b"])
