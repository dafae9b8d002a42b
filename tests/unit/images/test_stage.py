"""Rendered tables: seeds, the layout that `datasets` opens, and rows that are written as they come."""

import hashlib
import os
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from PIL.Image import Image

from safetydpo.config.baselines import Baselines
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.images.stage import render_pairs, render_prompts
from safetydpo.methods.opening import open_method
from safetydpo.methods.registry import RESEED
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render
from safetydpo.storage.files import read_parquet, write_parquet
from safetydpo.storage.images import unpng
from safetydpo.storage.records import seed_of

MODEL = Model(id="m", height=8, width=8, num_inference_steps=1, guidance_scale=1, batch_size=4)


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int)).max()


def test_both_images_of_a_pair_start_from_the_pairs_seed(tiny, tiny_features):
    pairs, prompts = read_parquet(tiny_features / "pairs.parquet"), read_parquet(tiny_features / "prompts.parquet")
    assert pairs.seed.tolist() == [seed_of(0, f"p{i}") for i in range(3)]
    pipeline = load_pipeline(tiny)
    for column in ("unsafe", "safe"):
        prompt, seed = prompts[f"{column}_prompt"][1], pairs.seed[1]
        mine, other = render(pipeline, [prompt] * 2, [seed, seed + 1], tiny)
        assert difference(unpng(pairs[f"{column}_image"][1]), mine) <= 1
        assert difference(unpng(pairs[f"{column}_image"][1]), other) > 1


def test_a_seed_offset_is_added_and_recorded(tiny, prompts, tmp_path):
    render_prompts(prompts, tiny, tmp_path / "o.parquet", n=1, method="base-reseed")
    row = read_parquet(tmp_path / "o.parquet").iloc[0]
    moved, at_0 = render(load_pipeline(tiny), ["a red circle"] * 2, [RESEED, 0], tiny)
    assert row.seed == RESEED
    assert difference(unpng(row.image), moved) <= 1
    assert difference(unpng(row.image), at_0) > 1


def test_datasets_opens_the_shards_as_images(tiny, tiny_features, prompts, tmp_path):
    render_prompts(prompts, tiny, tmp_path / "out.parquet", n=2)
    pairs = tiny_features / "pairs.parquet"
    for path, columns, rows in ((tmp_path / "out.parquet", ["image"], 2), (pairs, ["unsafe_image", "safe_image"], 3)):
        data = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / path.stem))
        assert len(data) == rows
        table = read_parquet(path)
        for column in columns:
            assert isinstance(data[1][column], Image)
            assert np.array_equal(np.asarray(data[1][column]), unpng(table[column][1]))


ROWS = pd.DataFrame(
    {
        "prompt_id": [f"x-{i}" for i in range(4)],
        "prompt": ["a red circle", "a blue star", "a red star", "a brulo"],
        "category": "c",
        "seed": range(4),
        "guidance_scale": [None, 3.0, 90.0, 3.0],
        "height": pd.array([None, 24, 16, 24], "Int64"),
        "width": pd.array([None, 16, None, 16], "Int64"),
    }
)


@pytest.mark.parametrize("method", ["base", "negative-prompt", "sld-max", "external-mine"])
def test_every_method_renders_a_row_with_its_own_guidance_and_size(tiny, tmp_path, method):
    write_parquet(ROWS, tmp_path / "prompts.parquet")
    baselines = Baselines(sld_concept="a brulo", externals=[{"name": "mine", "path": tiny.id}])
    for shard in (0, 1):
        out = tmp_path / f"{shard}.parquet"
        given = {"method": method, "baselines": baselines, "shard": shard, "shards": 2}
        render_prompts(tmp_path / "prompts.parquet", tiny, out, **given)
    found = pd.concat([read_parquet(tmp_path / f"{i}.parquet") for i in (0, 1)])
    assert found.prompt_id.tolist() == ROWS.prompt_id.tolist()
    pipeline = open_method(method, tiny, baselines)
    settings = [
        {},
        {"guidance_scale": 3.0, "height": 24},
        {"guidance_scale": 90.0},
        {"guidance_scale": 3.0, "height": 24},
    ]
    for row, own in zip(found.itertuples(), settings, strict=True):
        config = tiny.model_copy(update=own)
        (alone,) = render(pipeline, [row.prompt], [row.seed], config)
        assert unpng(row.image).shape == alone.shape == (config.height, 16, 3)
        assert difference(unpng(row.image), alone) <= 1
    (flat,) = render(pipeline, ["a red star"], [2], tiny)
    assert difference(unpng(found.image.iloc[2]), flat) > 1  # guidance decides


def test_a_method_that_lives_of_guidance_refuses_rows_without_it_before_it_renders(tiny, tmp_path):
    write_parquet(ROWS.assign(guidance_scale=[3.0, 1.0, 2.0, 2.0]), tmp_path / "p.parquet")
    render_prompts(tmp_path / "p.parquet", tiny, tmp_path / "o.parquet")
    with pytest.raises(SafetyDPOError, match=r"sld-max changes classifier-free guidance, .* has a row where it is 1"):
        render_prompts(tmp_path / "p.parquet", tiny, tmp_path / "s.parquet", method="sld-max")


def pixels_of(prompt, seed):
    """An image that tells its prompt and seed from all others."""
    digest = hashlib.sha256(f"{seed}/{prompt}".encode()).digest()
    return np.frombuffer(digest[:12], np.uint8).reshape(2, 2, 3)


@pytest.fixture
def rendering(monkeypatch):
    """Let images be those of `pixels_of`, made without a model; `check` is called before image number `at`."""

    def patch(at, check):
        def render(_, prompts, seeds, config, own=None):
            assert (config, own) == (MODEL, None)
            for i, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True)):
                if i == at:
                    check()
                yield pixels_of(prompt, seed)

        monkeypatch.setattr("safetydpo.images.stage.render", render)
        monkeypatch.setattr("safetydpo.images.stage.open_method", lambda *_: None)
        monkeypatch.setattr("safetydpo.images.stage.load_pipeline", lambda *_: None)

    return patch


def many_prompts(folder, count):
    rows = [{"prompt_id": f"x-{i}", "prompt": f"prompt {i}", "category": "c", "seed": i % 7} for i in range(count)]
    write_parquet(rows, folder / "prompts.parquet")
    return folder / "prompts.parquet"


def row_groups(path):
    metadata = pq.ParquetFile(path).metadata
    return [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]


def begun(out, seen):
    """A check that rows are on disk already, though not under their final name."""

    def check():
        (temporary,) = out.parent.glob(f".{out.name}.{os.getpid()}@*.tmp")
        assert temporary.stat().st_size > 4  # more than Parquet's magic number
        assert not out.exists()
        seen.append(temporary)

    return check


def test_images_are_written_as_they_come(rendering, tmp_path):
    out, seen = tmp_path / "out.parquet", []
    rendering(300, begun(out, seen))
    render_prompts(many_prompts(tmp_path, 600), MODEL, out)
    assert len(seen) == 1
    assert row_groups(out) == [256, 256, 88]
    table = read_parquet(out)
    assert table.prompt_id.tolist() == [f"x-{i}" for i in range(600)]
    for row in table.itertuples():
        assert np.array_equal(unpng(row.image), pixels_of(row.prompt, row.seed))


def test_pairs_are_written_as_they_come_each_with_its_own_two_images(rendering, tmp_path):
    rows = [{"pair_id": f"p{i}", "unsafe_prompt": f"unsafe {i}", "safe_prompt": f"safe {i}"} for i in range(300)]
    write_parquet(rows, tmp_path / "prompts.parquet")
    out, seen = tmp_path / "out.parquet", []
    rendering(2 * 256 + 40, begun(out, seen))  # within the unsafe images of the second row group
    render_pairs(tmp_path / "prompts.parquet", MODEL, 0, 1, 5, out)
    assert len(seen) == 1
    assert row_groups(out) == [256, 44]
    table = read_parquet(out)
    assert table.pair_id.tolist() == [f"p{i}" for i in range(300)]
    assert table.seed.tolist() == [seed_of(5, f"p{i}") for i in range(300)]
    for i, row in enumerate(table.itertuples()):
        assert np.array_equal(unpng(row.unsafe_image), pixels_of(f"unsafe {i}", row.seed))
        assert np.array_equal(unpng(row.safe_image), pixels_of(f"safe {i}", row.seed))


def test_a_render_that_fails_leaves_no_file(rendering, tmp_path):
    out, seen = tmp_path / "out.parquet", []

    def fail():
        begun(out, seen)()
        raise SafetyDPOError("not finite")

    rendering(300, fail)
    path = many_prompts(tmp_path, 600)
    with pytest.raises(SafetyDPOError, match="not finite"):
        render_prompts(path, MODEL, out)
    assert len(seen) == 1
    assert list(tmp_path.iterdir()) == [path]


KILLED = """
import sys, time
import numpy as np
from safetydpo.config.model import Model
from safetydpo.images import stage

def render(pipeline, prompts, seeds, config, own):
    for i in range(len(prompts)):
        if i == 300:
            print("in the middle", flush=True)
            time.sleep(600)
        yield np.zeros((2, 2, 3), np.uint8)

stage.render, stage.open_method = render, lambda *_: None
stage.render_prompts(sys.argv[1], Model.model_validate_json(sys.argv[2]), sys.argv[3])
"""


def test_a_killed_render_leaves_no_result_and_the_next_run_is_whole(rendering, tmp_path):
    path, out = many_prompts(tmp_path, 600), tmp_path / "out.parquet"
    command = [sys.executable, "-c", KILLED, str(path), MODEL.model_dump_json(), str(out)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "in the middle\n"
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    (left,) = tmp_path.glob(".*.tmp")
    assert left.stat().st_size > 4
    assert not out.exists()
    rendering(None, None)
    render_prompts(path, MODEL, out)
    assert row_groups(out) == [256, 256, 88]
    assert sorted(tmp_path.iterdir()) == [out, path]
