"""The public benchmark eval-unlearn on what a run exports, and on the run itself. Opt-in: tests/eval_unlearn/run."""

import csv
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from PIL import Image
from snakes import ROOT, Workdir

pytestmark = pytest.mark.skipif(
    "SAFETYDPO_EVAL_UNLEARN" not in os.environ, reason="installs a package: tests/eval_unlearn/run"
)

VERSION = "1.1.2"
RUN, METHOD = "results/reduced", "uce"  # which is made in seconds
EXPORTED = f"{RUN}/export/{METHOD}/pipeline"
RENDERED = {"num_inference_steps": 4, "guidance_scale": 3.0}  # as the reduced demo does
PROMPTS = [f"a {colour} {shape} on a white field" for colour in ("red", "blue") for shape in ("circle", "star")]
METRIC = {"name": "asr_i2p", "config": {"concept_name": "nudity", "device": "cpu"}}
# What each metric takes from the network, which tests here do without.
HUB_CLIP, PACKAGE = "a CLIP and prompts of the hub", "a package, clone of the hub's eval-unlearn-packages, and a CLIP"
DOWNLOADS = {
    "asr_i2p": None,  # NudeNet's weights are in its package; the test brings the table of prompts
    "asr_mma_diffusion": PACKAGE,
    "asr_p4d": PACKAGE,
    "asr_ring_a_bell": PACKAGE,
    "clip_score": HUB_CLIP,
    "err": HUB_CLIP,
    "fid": "torchvision with its Inception's weights, and COCO",
    "tifa": "modelscope with its mPLUG, and questions of the hub",
    "ua_ira": "a CLIP of the hub",
}


class Bench(NamedTuple):
    """A run with an export, in a folder in which eval-unlearn's own Python runs."""

    python: Path
    folder: Path

    def call(self, *args: str) -> str:
        """Run that Python in the folder; what it printed."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_TOKEN", "PYTHON"))}
        done = subprocess.run(
            [self.python, *args],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment | {"HF_HUB_OFFLINE": "1"},
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def images(self, technique: str) -> list[np.ndarray]:
        """What a technique drew for the metric, in order."""
        (folder,) = (self.folder / "out").glob(f"{technique}_asr_i2p_*")
        files = sorted(folder.glob("images/*.png"), key=lambda path: int(path.stem.rsplit("_", 1)[1]))
        return [np.asarray(Image.open(file)).astype(int) for file in files]

    def report(self, technique: str) -> dict:
        """What was written of a technique."""
        return json.loads((self.folder / f"out/{technique}_nudity_latest_report.json").read_text())


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An environment of its own with eval-unlearn and this project, that sees what is installed here."""
    folder = tmp_path_factory.mktemp("eval-unlearn")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = folder / "venv/bin/python"
    place = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", place], check=True, text=True, stdout=subprocess.PIPE).stdout.strip())
    (site / "project.pth").write_text(sysconfig.get_path("purelib") + "\n")
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [python, "-m", "pip", "install", "--quiet"]
    pinned = ["--constraint", ROOT / "envs/constraints.txt"]
    subprocess.run([*pip, *pinned, f"eval-unlearn=={VERSION}"], check=True)
    subprocess.run([*pip, "--no-deps", folder], check=True)
    return python


@pytest.fixture(scope="module")
def bench(python, tmp_path_factory) -> Bench:
    """The export of a reduced demo, judged through `free_run`, and the run, judged through `safetydpo`."""
    work = Workdir(tmp_path_factory.mktemp("run"))
    done = work.run(EXPORTED, f"{RUN}/config.yaml", "--show-failed-logs")
    assert done.returncode == 0, done.stdout
    _write_prompts(work.folder / "AIML-TUDA/i2p")  # datasets takes a folder of that name before the hub's
    bench = Bench(python, work.folder)
    free = {"model_id": EXPORTED, "device": "cpu", "erase_concept": "nudity", **RENDERED}
    runner = "from eval_unlearn.runners import SingleBenchmarkRunner as Runner\n"
    bench.call("-c", f"{runner}Runner('free_run', 'asr_i2p', {free}, {METRIC['config']}, 'out', seed=0).run()")
    ours = {"run": RUN, "method": METHOD, "erase_concept": "nudity"}
    config = {"output_dir": "out", "technique": {"name": "safetydpo", "config": ours}, "metrics": [METRIC]}
    (work.folder / "bench.yaml").write_text(yaml.safe_dump(config))
    bench.call("-m", "eval_unlearn.cli", "run", "--config", "bench.yaml")
    return bench


def _write_prompts(folder: Path) -> None:
    """A table with I2P's columns: PROMPTS under its label of nudity, one more under another's."""
    folder.mkdir(parents=True)
    with (folder / "prompts.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["prompt", "categories"])
        rows.writerows([[prompt, "shocking, sexual"] for prompt in PROMPTS] + [["a green moon", "violence"]])


def test_both_ways_write_a_report_of_every_prompt_of_the_concept(bench):
    free, ours = bench.report("free_run"), bench.report("safetydpo")
    assert (free["technique_name"], ours["technique_name"]) == ("free_run", "safetydpo")
    assert free["dataset_metadata"]["total_loaded"] == len(PROMPTS)
    for result in (free["metric_result"], ours["metric_results"]["asr_i2p"]):
        details = result["details"]
        assert details["total_images"] == len(PROMPTS)
        assert result["value"] == details["unsafe_count"] == 0  # NudeNet sees nobody in coloured shapes


def test_the_export_and_the_run_draw_the_same_images_as_the_workflow(bench, monkeypatch):
    from safetydpo.config.loading import read_config
    from safetydpo.export.request import parts_of
    from safetydpo.methods.opening import open_method
    from safetydpo.methods.registry import method_of
    from safetydpo.models.sampling import render

    monkeypatch.chdir(bench.folder)
    config = read_config(Path(RUN) / "config.yaml")

    def drawn(name: str) -> np.ndarray:
        weights, scale = parts_of(config, Path(RUN), method_of(name))
        pipeline = open_method(name, config.model, config.baselines, weights, scale)
        return np.stack(list(render(pipeline, PROMPTS, range(len(PROMPTS)), config.model))).astype(int)

    expected = drawn(METHOD)
    assert abs(np.stack(bench.images("safetydpo")) - expected).max() <= 1
    assert abs(np.stack(bench.images("free_run")) - expected).max() <= 2
    assert abs(drawn("base") - expected).max() > 2  # or the export might be the base


def test_metrics_are_those_that_are_known_here(bench):
    code = "from importlib.metadata import entry_points as e; print(*e(group='eval_unlearn.metrics').names)"
    assert sorted(bench.call("-c", code).split()) == sorted(DOWNLOADS)


@pytest.mark.parametrize("metric", DOWNLOADS)
def test_metric(bench, metric):
    """Each by name, so that it is seen which ones were not run."""
    if DOWNLOADS[metric]:
        pytest.skip(f"{metric} needs {DOWNLOADS[metric]}")
    assert metric in bench.report("safetydpo")["metric_results"]
