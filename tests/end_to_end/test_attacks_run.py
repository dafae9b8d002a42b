"""Attacks through the real Snakemake, on the reduced demo: files, cells, tables, resume, bad input."""

import json
import os
import signal
import subprocess
import time

import pandas as pd
import pytest

from safetydpo.demo.grammar import CONCEPTS

RUN = "results/reduced"
NAMES = ["random-tokens", "ring-a-bell", "mma-diffusion", "sneaky-prompt", "unlearn-diff-atk"]
SECTION = {
    "run": NAMES,
    "methods": ["base", "merged-co-merge"],
    "prompts": 4,
    "rounds": 2,
    "forbidden": list(CONCEPTS),
    "success": "category",
    "ring_a_bell": {"population": 8, "generations": 2},
    "mma_diffusion": {"iterations": 2, "candidates": 8, "top": 8},
    "unlearn_diff_atk": {"steps": 2, "learning_rate": 0.3},
}


def changes(**keys) -> dict:
    return {"attacks": SECTION | keys}


@pytest.fixture(scope="module")
def attacked(finished, tmp_path_factory):
    """The reduced run with every attack on two methods."""
    work = finished.copy(tmp_path_factory.mktemp("attacked") / "run")
    plan = work.planned(changes())
    assert plan["attack"] == plan["render_benchmark"] == plan["score"] == 2 * (len(NAMES) + 2)
    assert not {"train_expert", "render_pairs", "tune_scale", "merge_experts"} & set(plan)
    done = work.run("--show-failed-logs", changes=changes())
    assert done.returncode == 0, done.stdout
    return work


@pytest.mark.parametrize("name", [*NAMES, "original", "words-removed"])
def test_an_attack_writes_a_prompt_set_with_what_it_spent(attacked, name):
    for method in SECTION["methods"]:
        found = pd.read_parquet(attacked.folder / RUN / f"attacks/{name}/{method}.parquet")
        assert len(found) == 4
        assert {
            "prompt",
            "original_prompt",
            "category",
            "success",
            "flagged",
            "queries",
            "steps",
            "loss",
            "seconds",
        } <= set(found)
        assert found.queries.between(1, 2).all()
        own = found.original_prompt if name == "unlearn-diff-atk" and method != "base" else ""
        rest = [p.removesuffix(o) for p, o in zip(found.prompt, own if len(own) else [""] * 4, strict=True)]
        if name != "original":
            assert not any(word in text for text in rest for word in CONCEPTS)
        log = (attacked.folder / f"logs/reduced/attack/{name}/{method}.log").read_text()
        assert "of 4 prompts reach what was wanted" in log
    assert not list((attacked.folder / RUN / "attacks").rglob("*.jsonl"))


def test_what_an_attack_found_is_rendered_and_judged_like_any_benchmark(attacked):
    metrics = pd.read_parquet(attacked.folder / RUN / "metrics.parquet")
    for method in SECTION["methods"]:
        for name in NAMES:
            cell = metrics[
                (metrics.method == method) & (metrics.benchmark == f"attack-{name}") & (metrics.metric == "ip")
            ]
            found = pd.read_parquet(attacked.folder / RUN / f"attacks/{name}/{method}.parquet")
            assert cell[cell.category == "all"].value.iloc[0] == pytest.approx(found.flagged.mean())


def test_tables_figure_and_page_have_the_attacks(attacked):
    run = attacked.folder / RUN
    table = (run / "tables/attacks.md").read_text()
    assert all(f"IP ({name})" in table for name in [*NAMES, "original", "words-removed"])
    costs = pd.read_parquet(run / "tables/attack-costs.parquet")
    assert set(costs.category) == {"all", "ring", "cross"}
    assert len(costs[costs.category == "all"]) == 2 * len(NAMES)
    assert (run / "figures/attacks.svg").exists()
    assert "Adversarial attacks" in (run / "report.html").read_text()


def test_a_budget_touches_its_own_attack_only(attacked):
    plan = attacked.planned(changes(ring_a_bell={"population": 10, "generations": 2}))
    assert plan["attack"] == 2
    assert attacked.planned(changes(together=3)) in ({}, {"resolved_config": 1, "all": 1})


def test_kill_9_keeps_finished_prompts(attacked, tmp_path):
    work = attacked.copy(tmp_path / "killed")
    target = f"{RUN}/attacks/mma-diffusion/base.parquet"
    slow = changes(together=1, rounds=3, mma_diffusion={"iterations": 40, "candidates": 64, "top": 8})
    process = subprocess.Popen(
        work.command(target, changes=slow),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    journal = work.folder / RUN / "attacks/mma-diffusion/base.jsonl"
    for _ in range(1200):
        if journal.exists() and len(journal.read_text().splitlines()) > 2:  # its head and two prompts
            break
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    assert 2 <= len(kept) < 4
    work.run("--unlock", changes=slow)
    done = work.run("--rerun-incomplete", target, changes=slow)
    assert done.returncode == 0, done.stdout
    assert (
        f"{len(kept)} of 4 prompts were finished before"
        in (work.folder / "logs/reduced/attack/mma-diffusion/base.log").read_text()
    )
    again = pd.read_parquet(work.folder / target)
    assert list(again.seconds[: len(kept)]) == [row["seconds"] for row in kept]
    whole = attacked.copy(tmp_path / "whole")
    assert whole.run(target, changes=slow).returncode == 0
    pd.testing.assert_frame_equal(
        again.drop(columns="seconds"), pd.read_parquet(whole.folder / target).drop(columns="seconds")
    )


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rounds": 0}, "attacks.rounds: Input should be greater than or equal to 1 (got 0)"),
        ({"forbidden": []}, "attacks: attacks need words to forbid: set forbidden, a list, or forbidden_path"),
        (
            {"methods": ["sld-medium"]},
            "attacks.methods: unlearn-diff-atk needs gradients of the UNet, which `sld-medium`",
        ),
        ({"methods": ["nobody"]}, "attacks.methods: no method `nobody`"),
        ({"benchmark": "safe"}, "attacks.benchmark: no unsafe benchmark `safe`; there are test, ood"),
        ({"run": ["guessing"]}, "attacks.run.0: Input should be 'random-tokens'"),
    ],
)
def test_bad_input_is_one_sentence_before_any_job(finished, keys, said):
    done = finished.run("--dry-run", changes=changes(**keys))
    assert done.returncode == 1
    assert said in done.stdout
    assert "Traceback" not in done.stdout
