"""What a stage reads is what a stage wrote; who owns a file decides what is said of it; writers leave each other be."""

import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.files import (
    read_batches,
    read_json,
    read_parquet,
    read_safetensors,
    whole_file,
    write_batches,
    write_parquet,
    write_safetensors,
    write_text,
)


def _inverted(path, at):
    """The file with one byte inverted, its time kept."""
    times, data = path.stat(), bytearray(path.read_bytes())
    data[at] ^= 0xFF
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _table_or_sentence(read, path):
    try:
        return read(path)
    except SafetyDPOError as error:
        return str(error)


def test_no_byte_of_a_tensor_or_its_header_changes_silently(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(4, dtype=torch.bfloat16), "n": torch.tensor(7)}
    write_safetensors(tensors, path, {"made": "here"})
    whole = path.read_bytes()
    for at in range(len(whole)):
        _inverted(path, at)
        with pytest.raises(SafetyDPOError, match=r"x\.safetensors .*whole"):
            read_safetensors(path)
        path.write_bytes(whole)
    read, header = read_safetensors(path)
    assert header == {"made": "here", "sha256": header["sha256"]}
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_the_digest_is_of_header_names_types_shapes_and_bytes(tmp_path):
    write_safetensors(
        {"b": torch.tensor([[1, 2]], dtype=torch.uint8)}, tmp_path / "x.safetensors", {"z": "1", "a": "2"}
    )
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        kept = file.metadata()["sha256"]
    assert kept == hashlib.sha256(b'{"a": "2", "z": "1"}' + b"b torch.uint8 (1, 2)" + b"\x01\x02").hexdigest()


def test_files_of_others_have_no_digest_and_are_taken_as_they_are(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors", {"format": "pt"})
    assert read_safetensors(tmp_path / "x.safetensors", own=False)[0]["a"].tolist() == [1, 1]


def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path):
    save_file({"up": torch.tensor([1.0, float("nan")]), "n": torch.tensor([1])}, tmp_path / "x.safetensors")
    with pytest.raises(SafetyDPOError, match=r"up of .*x\.safetensors: 1 of 2 values are NaN or infinite; get a whole"):
        read_safetensors(tmp_path / "x.safetensors", own=False)


@pytest.mark.parametrize("batches", [False, True])
def test_no_byte_of_a_tables_pages_changes_silently(tmp_path, batches):
    path = tmp_path / "x.parquet"
    rows = pd.DataFrame({"value": [0.0, 1.0, 0.5], "metric": ["ip", "ip", "fid"]})
    if batches:
        write_batches([pa.Table.from_pandas(rows, preserve_index=False)], path, {"k": "v"})
    else:
        write_parquet(rows, path, {"k": "v"})
    whole = path.read_bytes()
    pages = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    assert pages > 100
    for at in range(pages):
        _inverted(path, at)
        for read in (read_parquet, lambda path: pd.concat(read_batches([path], 2), ignore_index=True)):
            found = _table_or_sentence(read, path)
            same = found.startswith(f"{path} is not a whole") if isinstance(found, str) else found.equals(rows)
            assert same, at
        path.write_bytes(whole)


def test_checksums_cost_a_table_of_real_size_at_most_one_and_a_half_per_cent(tmp_path):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"value": rng.random(2000), "name": [f"p-{i:05d}" for i in range(2000)]})
    write_parquet(rows, tmp_path / "with.parquet")
    pq.write_table(pa.Table.from_pandas(rows, preserve_index=False), tmp_path / "without.parquet", compression="zstd")
    assert (tmp_path / "with.parquet").stat().st_size <= 1.015 * (tmp_path / "without.parquet").stat().st_size


def test_files_follow_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_safetensors({"a": torch.ones(1)}, tmp_path / "a.safetensors", {})
        write_parquet([{"a": 1}], tmp_path / "a.parquet")
        write_text("a", tmp_path / "a.json")
    finally:
        os.umask(before)
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in tmp_path.iterdir()} == {
        "a.safetensors": "0o640",
        "a.parquet": "0o640",
        "a.json": "0o640",
    }


def test_a_users_file_is_never_to_be_deleted(tmp_path):
    for name, read in (("x.parquet", read_parquet), ("x.safetensors", read_safetensors), ("x.json", read_json)):
        with pytest.raises(SafetyDPOError, match=r"does not exist: put it there or correct the path\."):
            read(tmp_path / name, own=False)
        (tmp_path / name).write_bytes(b"PAR1 half")
        with pytest.raises(SafetyDPOError, match=r"is not a whole .*: replace it by a whole one\."):
            read(tmp_path / name, own=False)
        with pytest.raises(SafetyDPOError, match=r"is not a whole .*: delete it and rerun snakemake\."):
            read(tmp_path / name)


def test_what_merely_cannot_be_read_is_no_damage(tmp_path):
    (tmp_path / "x.json").mkdir()
    with pytest.raises(SafetyDPOError, match=r"x\.json cannot be read \(Is a directory\): mend that, then rerun\."):
        read_json(tmp_path / "x.json")


@pytest.mark.parametrize("text", ["", "{", "[1]", "\xff\xfe", "null"])
def test_json_that_is_no_object_is_a_sentence(tmp_path, text):
    (tmp_path / "scale.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(SafetyDPOError, match=r"scale\.json is not a whole JSON file \(.+\): delete it and rerun"):
        read_json(tmp_path / "scale.json")
    (tmp_path / "scale.json").write_text(json.dumps({"scale": 1.5}))
    assert read_json(tmp_path / "scale.json") == {"scale": 1.5}


def test_a_fault_of_what_is_written_is_not_called_a_full_disk(tmp_path):
    def tables():
        yield pa.table({"a": [1]})
        raise OSError("image file is truncated")

    with pytest.raises(OSError, match="image file is truncated"):
        write_batches(tables(), tmp_path / "x.parquet", {})
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys, time
from safetydpo.storage.files import whole_file
for turn in range(40):
    with whole_file(sys.argv[1]) as temporary:
        temporary.write_text(sys.argv[2] * 1000)
        time.sleep(0.002)
"""


def test_two_processes_may_write_one_path(tmp_path):
    target = tmp_path / "x.txt"
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, target, mark]) for mark in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert target.read_text() in ("a" * 1000, "b" * 1000)
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_process_left_is_removed_and_no_more(tmp_path):
    killed = "import os, sys\nfrom safetydpo.storage.files import whole_file\n"
    killed += "with whole_file(sys.argv[1]) as temporary:\n    temporary.write_text('half'); os.kill(os.getpid(), 9)"
    target = tmp_path / "x[1].txt"
    subprocess.run([sys.executable, "-c", killed, target])
    (left,) = tmp_path.iterdir()
    elsewhere = left.with_name(left.name.replace("@", "@elsewhere-"))  # another machine's on a shared disk
    elsewhere.write_text("")
    with whole_file(target) as living:
        assert not left.exists()
        with whole_file(tmp_path / "x[1].txt.other") as temporary:
            temporary.write_text("b")
        living.write_text("whole")
    assert {path.name for path in tmp_path.iterdir()} == {"x[1].txt", "x[1].txt.other", elsewhere.name}


def test_a_name_as_long_as_the_file_system_allows_is_written(tmp_path):
    path = tmp_path / ("é" * 125 + ".txt")
    write_text("a", path)
    assert path.read_text() == "a"
