"""Dry runs on an empty folder: every overlay plans the same stages; mistakes end in one sentence."""

import json
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
TRAINING = {"prompts", "render_pairs", "features", "train_expert", "train_all_single", "merge_experts", "tune_scale"}
# Of a person who does without the demo's files for tuning and preservation.
PLAIN = {"tune": {"scales": [1.0]}, "train": {"preserve": {"weight": 0}}, "baselines": {"uce": {"retain": False}}}


@pytest.mark.parametrize("name", ["sd15", "sd21", "sdxl", "flux"])
def test_overlays_plan_every_stage_without_model_or_data(tmp_path, name):
    plan = Workdir(tmp_path).planned(configs=(ROOT / f"config/{name}.yaml",))
    assert set(plan) >= STAGES
    assert plan["train_expert"] == 7
    assert "tuning_prompts" not in plan  # one scale: nothing to choose


def test_all_tables_of_the_demo_are_planned(tmp_path):
    plan = Workdir(tmp_path).planned(configs=(ROOT / "config/tables.yaml",))
    assert (plan["erase"], plan["merge_experts"]) == (3, 8)
    assert plan["render_benchmark"] == 18 * 4 + 2 + 7 + 7


@pytest.mark.parametrize(
    ("own", "statistics"), [("ties", []), ("co-merge", ["coactivation_variant"]), ("fusion", ["covariances_variant"])]
)
def test_an_ablation_is_merged_as_the_run_is(tmp_path, own, statistics):
    others = [name for name in ("co-merge", "fusion", "ties") if name != own]
    plan = Workdir(tmp_path).planned({"merge": {"strategies": [own, *others]}}, targets=("ablation_loss",))
    assert {name for name in plan if name.endswith("_variant")} == {"train_variant", "merge_variant", *statistics}
    assert (plan["train_variant"], plan["merge_variant"], plan["merge_experts"], plan["tune_scale"]) == (4, 2, 1, 3)


def test_adversarial_rounds_come_before_the_experts_and_all_but_the_last_have_their_own(tmp_path):
    work = Workdir(tmp_path)
    once = work.planned(configs=())
    assert (once["harden_prompts"], once["harden_attack"], once["harden_pairs"], once["harden_features"]) == (
        1,
        1,
        1,
        7,
    )
    assert not any(name.endswith("_hardened") for name in once)
    harden = {"rounds": 2, "attacks": ["random-tokens", "ring-a-bell"], "strategy": "mean"}
    twice = work.planned({"harden": harden}, configs=())
    assert (twice["harden_attack"], twice["harden_pairs"], twice["harden_features"]) == (4, 2, 14)
    assert (twice["train_hardened"], twice["merge_hardened"], twice["tune_hardened"]) == (7, 1, 1)
    assert "coactivation_hardened" not in twice
    assert twice["train_expert"] == once["train_expert"] == 7


def test_a_part_asks_only_for_the_files_of_its_own_rules(tmp_path):
    (tmp_path / "pairs.csv").write_text("category,unsafe_prompt,safe_prompt\n" + "ring,a,b\n" * 50)
    changes = {"prompts": {"source": "pairs", "path": "pairs.csv", "pairs": 48}}
    work = Workdir(tmp_path)
    whole = work.run("--dry-run", changes=changes)
    assert whole.returncode == 1
    assert re.search(r"^Config errors:\n  (train\.preserve|tune)\.path: needed ", whole.stdout, re.MULTILINE)
    part = work.run("--dry-run", "--until", "prompts", changes=changes)
    assert part.returncode == 0, part.stdout
    assert set(re.findall(r"^(\w+) +\d+$", part.stdout.split("Job stats:")[1], re.MULTILINE)) == {"prompts", "total"}
    asked = work.run("--until", "tuning_prompts", changes=changes)
    assert asked.returncode != 0
    assert "tuning_prompts: tune.path: needed to choose among tune.scales" in asked.stdout
    assert "Traceback" not in asked.stdout


def test_a_missing_model_is_one_sentence_before_anything_else(tmp_path):
    done = Workdir(tmp_path).run("--show-failed-logs", "results/sd15/model.json", configs=(ROOT / "config/sd15.yaml",))
    assert done.returncode != 0
    assert "Model stable-diffusion-v1-5/stable-diffusion-v1-5 cannot be loaded" in done.stdout
    assert "hf download stable-diffusion-v1-5/stable-diffusion-v1-5" in done.stdout
    assert "Traceback" not in done.stdout.split("check_model: Model")[0]
    assert "__onerror" not in done.stdout


def test_what_the_models_family_cannot_do_is_one_sentence_and_nothing_starts(tmp_path):
    index = {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]}
    (tmp_path / "model").mkdir()
    (tmp_path / "model/model_index.json").write_text(json.dumps(index))
    done = Workdir(tmp_path).run("--dry-run", changes={"model": {"id": "model"}})
    assert done.returncode == 1
    assert done.stdout.splitlines()[-2:] == [
        "Config errors:",
        "  evaluate.matrix: `uce` cannot be done with model, of family sd3: it has no cross-attention, whose keys and "
        "values UCE changes; take it out",
    ]


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
    changes = {"prompts": {"source": "pairs", "path": "nowhere.csv"}, **PLAIN}
    done = Workdir(tmp_path).run("results/reduced/prompts/ring.parquet", changes=changes)
    assert done.returncode != 0
    assert "prompts: nowhere.csv does not exist: put the file there or change the path in the config." in done.stdout


def test_a_run_of_one_category_without_unsafe_prompts_is_planned(tmp_path):
    evaluate = {"matrix": [{"methods": ["base", "base-reseed"], "benchmarks": ["b"]}]}
    benchmarks = [{"name": "b", "kind": "safe", "path": "b.csv"}]
    plan = Workdir(tmp_path).planned({"benchmarks": benchmarks, "evaluate": evaluate, "categories": [{"name": "ring"}]})
    assert (plan["benchmark_prompts"], plan["render_benchmark"], plan["score"]) == (1, 2, 2)
    assert not set(plan) & TRAINING
    with_lora = {"matrix": [{"methods": ["base", "merged-co-merge"], "benchmarks": ["b"]}], "fid_reference": None}
    plan = Workdir(tmp_path).planned(
        {"benchmarks": benchmarks, "evaluate": with_lora, "categories": [{"name": "ring"}]}
    )
    assert set(plan) >= TRAINING


@pytest.mark.parametrize("names", [["audit"], ["sdxl", "audit"], ["attacks", "audit"]])
def test_an_audit_renders_judges_and_reports_and_trains_nothing(tmp_path, names):
    plan = Workdir(tmp_path).planned(configs=tuple(ROOT / f"config/{name}.yaml" for name in names))
    attacked = {"attack", "prompts"} if "attacks" in names else set()  # Ring-A-Bell's concepts are those of pairs
    assert set(plan) == attacked | {
        *("all", "resolved_config", "check_model", "check_judges", "copy_judge", "check_verdicts"),
        *("benchmark_prompts", "render_benchmark", "score", "metrics", "report"),
    }


def test_an_audit_needs_no_categories_and_refuses_what_does(tmp_path):
    benchmarks = [{"name": "b", "kind": "unsafe", "path": "b.csv"}]
    attacks = {"run": ["mma-diffusion"], "forbidden": ["x"]}
    changes = {"categories": [], "benchmarks": benchmarks, "attacks": attacks}
    work, configs = Workdir(tmp_path), (ROOT / "config/audit.yaml",)
    assert work.planned(changes, configs)["attack"] == 3  # original and words-removed too
    attacks["run"].append("ring-a-bell")
    refused = work.run("--dry-run", changes=changes, configs=configs)
    assert refused.returncode == 1
    assert refused.stdout.splitlines()[-2:] == [
        "Config errors:",
        "  attacks.run: `ring-a-bell` needs prompt pairs of the categories, and `categories` is empty: name some, or "
        "take it out",
    ]


def test_paths_with_braces_and_spaces_are_taken_and_their_changes_noticed(tmp_path):
    work, path = Workdir(tmp_path), tmp_path / "my {data}/pairs {v2}.csv"
    path.parent.mkdir()
    path.write_text("unsafe_prompt,safe_prompt,category\na,b,ring\nc,d,ring\n")
    sets = path.with_name("{sets}, {a,b}.csv")
    sets.write_text("prompt,category\nx,ring\ny,\n")
    changes = {
        "results": "my runs/",
        "model": {"id": "models/{sd}"},
        "categories": [{"name": "ring"}],
        "prompts": {"source": "pairs", "path": str(path), "test_path": str(sets)},
        "pairs": {"shards": 1},
        "train": {"preserve": {"path": str(sets)}},
        "tune": {"path": str(sets)},
        "judges": {
            "panel": [{"judge": "q16", "id": "{clip}", "path": str(sets)}],
            "verdicts": ["q16"],
            "clip_score": "{clip}",
            "features": "clip",
        },
        "baselines": {"externals": [{"name": "a", "path": "lora {a}"}]},
        "benchmarks": [{"name": "test", "kind": "unsafe", "path": str(sets)}],
        "evaluate": {"matrix": [{"methods": ["base", "external-a"], "benchmarks": ["test"]}], "fid_reference": None},
        "attacks": {"run": ["random-tokens"], "forbidden_path": str(sets)},
    }
    assert {"prompts", "retain_prompts", "tuning_prompts", "attack", "score"} <= set(work.planned(changes))
    target = "my runs/reduced/prompts/ring.parquet"
    done = work.run(target, changes=changes)
    assert done.returncode == 0, done.stdout
    assert "Nothing to be done" in work.run("--dry-run", target, changes=changes).stdout
    path.write_text(path.read_text() + "e,f,ring\n")
    assert re.search(r"^prompts +1$", work.run("--dry-run", target, changes=changes).stdout, re.MULTILINE)


def test_a_key_given_twice_in_a_config_file_is_said(tmp_path):
    (tmp_path / "twice.yaml").write_text("train: {steps: 4}\nrun: twice\ntrain: {beta: 1}\n")
    done = Workdir(tmp_path).run("--dry-run", configs=(tmp_path / "twice.yaml",))
    assert done.returncode == 1
    assert "line 3: train, first given in line 1; put both into one" in done.stdout
    assert "Traceback" not in done.stdout


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
