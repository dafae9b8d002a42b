"""Dry runs on an empty folder: every overlay plans the same stages; mistakes end in one sentence."""

import re
import shutil
import subprocess
import sys

import pytest
from snakes import ROOT, Workdir

STAGES = {
    "prompts",
    "render_pairs",
    "features",
    "train_expert",
    "train_all_single",
    "merge_experts",
    "render_benchmark",
}
STAGES |= {"score", "metrics", "report", "tune_scale", "check_model"}


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl"])
def test_overlays_plan_every_stage_without_model_or_data(tmp_path, name):
    plan = Workdir(tmp_path).planned(configs=(ROOT / f"config/{name}.yaml",))
    assert set(plan) >= STAGES
    assert plan["train_expert"] == 7
    assert "tuning_prompts" not in plan  # one scale: nothing to choose


def test_all_tables_of_the_demo_are_planned(tmp_path):
    plan = Workdir(tmp_path).planned(configs=(ROOT / "config/tables.yaml",))
    assert (plan["erase"], plan["merge_experts"]) == (3, 7)
    assert plan["render_benchmark"] == 17 * 4 + 2 + 7 + 7


def test_a_missing_model_is_one_sentence_before_anything_else(tmp_path):
    done = Workdir(tmp_path).run("--show-failed-logs", "results/sd15/model.json", configs=(ROOT / "config/sd15.yaml",))
    assert done.returncode != 0
    assert "Model stable-diffusion-v1-5/stable-diffusion-v1-5 cannot be loaded" in done.stdout
    assert "hf download stable-diffusion-v1-5/stable-diffusion-v1-5" in done.stdout
    assert "Traceback" not in done.stdout.split("check_model: Model")[0]
    assert "__onerror" not in done.stdout


def test_missing_judges_are_one_sentence_before_anything_is_rendered(tmp_path):
    done = Workdir(tmp_path).run("results/sd15/judges.json", configs=(ROOT / "config/sd15.yaml",))
    assert done.returncode != 0
    assert "check_judges: CLIP laion/CLIP-ViT-H-14-laion2B-s32B-b79K cannot be loaded" in done.stdout


def test_all_config_errors_are_listed_and_nothing_starts(tmp_path):
    wrong = {"train": {"beta": -1, "sleeps": 3}, "model": {"dtype": "int8"}}
    done = Workdir(tmp_path).run(changes=wrong)
    assert done.returncode == 1
    assert "Traceback" not in done.stdout
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert any(line.startswith("train.beta: ") for line in lines)
    assert "train.sleeps: no such key" in lines
    assert any(line.startswith("model.dtype: ") for line in lines)
    assert not (tmp_path / "results").exists()


def test_a_missing_prompt_file_is_one_sentence(tmp_path):
    changes = {"prompts": {"source": "pairs", "path": "nowhere.csv"}}
    changes |= {
        "tune": {"scales": [1.0]},
        "train": {"preserve": {"weight": 0}},
        "baselines": {"uce": {"retain": False}},
    }
    done = Workdir(tmp_path).run("results/reduced/prompts/ring.parquet", changes=changes)
    assert done.returncode != 0
    assert "prompts: nowhere.csv does not exist: put the file there or change the path in the config." in done.stdout


def test_the_slurm_profile_plans(tmp_path):
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "--dry-run", "--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train_expert" in done.stderr + done.stdout


def test_a_machine_without_slurm_is_said_before_any_job(tmp_path, monkeypatch):
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("bash", "sh", "which"):
        (programs / name).symlink_to(shutil.which(name) or "")
    monkeypatch.setenv("PATH", str(programs))
    done = Workdir(tmp_path / "run").run("--executor", "slurm", "--jobs", "2")
    assert done.returncode == 1
    assert "Slurm is not on this machine (sbatch, squeue, scancel not found)" in done.stdout
    assert "Traceback" not in done.stdout
    assert not (tmp_path / "run/results").exists()


def test_every_rule_that_a_cluster_gets_says_what_it_needs():
    text = "\n".join(path.read_text() for path in (ROOT / "workflow/rules").glob("*.smk"))
    local = set(re.findall(r"^    (\w+),$", "".join(re.findall(r"^localrules:\n((?:    \w+,\n)+)", text, re.M)), re.M))
    rules = re.findall(r"^ *rule (\w+):\n(.*?)(?=^ *(?:use )?rule |^else|\Z)", text, re.M | re.S)
    assert len(rules) > 20
    for name, body in rules:
        if name not in local:
            assert {"threads:", "mem_mb=", "runtime="} <= set(re.findall(r"threads:|mem_mb=|runtime=", body)), name
