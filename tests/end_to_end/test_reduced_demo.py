"""The reduced demo through the real Snakemake: every file of the map is there, whole, and opens as promised."""

import json
import os
import signal
import subprocess
import time

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL.Image import Image

from safetydpo.demo.scenes import FAMILIES

RUN = "results/reduced"


def test_every_file_of_the_map_exists(finished):
    run = finished.folder / RUN
    for path in (
        "config.yaml",
        "model.json",
        "judges.json",
        "judges/q16.safetensors",
        "verdicts.json",
        "prompts/ring.parquet",
        "pairs/ring/1.parquet",
        "features/cross/0.safetensors",
        "experts/ring/pytorch_lora_weights.safetensors",
        "experts/all-single/training.parquet",
        "merged/co-merge/coactivation.parquet",
        "merged/fusion/covariances.safetensors",
        "merged/ties/README.md",
        "tuning/merged-co-merge.json",
        "images/merged-co-merge/ood/0.parquet",
        "baselines/uce/weights.safetensors",
        "images/esd-u/test/0.parquet",
        "scores/sld-medium/test.parquet",
        "scores/expert-cross/test.parquet",
        "metrics.parquet",
        "report.html",
    ):
        assert (run / path).exists(), path
    leftovers = [p for p in run.rglob("*") if p.name.endswith(".tmp")]
    assert leftovers == []


def test_pairs_open_as_images_and_share_seeds(finished, tmp_path):
    from datasets import load_dataset

    files = [str(p) for p in sorted((finished.folder / RUN / "pairs/ring").glob("*.parquet"))]
    data = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))
    assert len(data) == 8
    assert isinstance(data[0]["unsafe_image"], Image)
    assert data[0]["unsafe_image"].size == (48, 48)


def test_headers_say_what_made_a_file(finished):
    for path, stage in (("prompts/ring.parquet", "prompts"), ("pairs/ring/0.parquet", "render")):
        header = json.loads(pq.read_schema(finished.folder / RUN / path).metadata[b"safetydpo"])
        assert header["stage"] == stage
        assert header["libraries"]["diffusers"]


def test_the_long_table_has_intervals_and_counts(finished):
    table = pd.read_parquet(finished.folder / RUN / "metrics.parquet")
    assert list(table.columns) == [
        "method",
        "benchmark",
        "category",
        "metric",
        "value",
        "ci_low",
        "ci_high",
        "n",
        "seed",
    ]
    cell = table.query("method == 'base' and benchmark == 'test' and category == 'all' and metric == 'ip'").iloc[0]
    scores = pd.read_parquet(finished.folder / RUN / "scores/base/test.parquet")
    marks = [name for name in scores if name.startswith("demo[")]
    seen = scores[marks].idxmax(axis=1).str[5:-1].isin(FAMILIES)
    assert cell.value == pytest.approx((seen | (scores.q16 > 0.5)).mean())
    assert cell.n == 8
    assert cell.ci_low <= cell.value <= cell.ci_high


def test_experts_see_their_own_category_where_the_matrix_says_so(finished):
    scores = pd.read_parquet(finished.folder / RUN / "scores/expert-ring/test.parquet")
    assert set(scores.category) == {"ring"}


def test_the_merged_lora_loads_in_plain_diffusers_and_changes_renders(finished):
    import torch
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(finished.folder / "resources/demo/t2i", safety_checker=None)
    pipe.set_progress_bar_config(disable=True)

    def image():
        draw = torch.Generator().manual_seed(0)
        return pipe("a red circle", num_inference_steps=2, generator=draw, output_type="np", height=48, width=48).images

    before = image()
    pipe.load_lora_weights(str(finished.folder / RUN / "merged/co-merge"))
    assert np.abs(image() - before).max() > 0


def test_logs_say_what_a_job_did_and_nothing_of_the_libraries(finished):
    logs = {path: path.read_text() for path in (finished.folder / "logs").rglob("*.log")}
    assert len(logs) > 40
    for path, text in logs.items():
        assert " on " in text.splitlines()[0], path  # the rule, the node, its threads
        for noise in ("torchvision", "Loading weights", "Loading pipeline components"):
            assert noise not in text, path


def test_snakemakes_own_report_holds_tables_and_figures(finished, tmp_path):
    work = finished.copy(tmp_path / "reported")
    done = work.run("--report", "overview.html")
    assert done.returncode == 0, done.stdout
    page = (work.folder / "overview.html").read_text()
    for name in ("main.csv", "categories.csv", "grid-test.png", "merging.svg"):
        assert name in page


def test_kill_9_loses_nothing_and_the_next_command_continues(finished, tmp_path):
    work = finished.copy(tmp_path / "killed")
    run = work.folder / RUN
    for name in ("experts", "merged"):
        for path in sorted((run / name).rglob("*.safetensors")):
            path.unlink()
    kept = {p: p.stat().st_mtime_ns for p in (run / "pairs").rglob("*.parquet")}
    target = [f"{RUN}/experts/{c}/pytorch_lora_weights.safetensors" for c in ("ring", "cross")]
    process = subprocess.Popen(
        work.command(*target), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    log = work.folder / "logs/reduced/train_expert/ring.log"
    log.unlink()
    for _ in range(600):
        if log.exists() and "reference" in log.read_text():  # training has begun
            break
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not all((work.folder / path).exists() for path in target)
    work.run("--unlock")
    done = work.run("--rerun-incomplete", *target)
    assert done.returncode == 0, done.stdout
    for path in target:
        again, first = (pq_bytes(folder / path) for folder in (work.folder, finished.folder))
        assert again == first  # same seed, same weights, whole files
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def pq_bytes(path) -> bytes:
    """Tensor bytes of a safetensors file, without its header."""
    from safetensors.numpy import load_file

    return b"".join(value.tobytes() for _, value in sorted(load_file(path).items()))


def test_truncated_files_of_an_earlier_stage_are_named(finished, tmp_path):
    work = finished.copy(tmp_path / "cut")
    pairs = work.folder / RUN / "pairs/ring/0.parquet"
    pairs.write_bytes(pairs.read_bytes()[:500])
    done = work.run(f"{RUN}/features/ring/0.safetensors")
    assert done.returncode != 0
    assert f"features: {RUN}/pairs/ring/0.parquet is not a whole Parquet file" in done.stdout
    features = work.folder / RUN / "features/cross/0.safetensors"
    features.write_bytes(features.read_bytes()[:500])
    done = work.run(f"{RUN}/experts/cross/pytorch_lora_weights.safetensors")
    assert done.returncode != 0
    assert f"train_expert: {RUN}/features/cross/0.safetensors is not a whole safetensors file" in done.stdout
