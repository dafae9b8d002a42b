"""Exports are planned when they are asked for, with what they need and no more."""

import re

from snakes import Workdir

FOLDER = "results/reduced/export"


def test_an_export_needs_its_weights_and_scale_and_no_report(tmp_path):
    work = Workdir(tmp_path)
    assert "export" not in work.planned()
    done = work.run("--dry-run", f"{FOLDER}/merged-co-merge/lora", f"{FOLDER}/expert-ring/pipeline")
    assert done.returncode == 0, done.stdout
    plan = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout.split("Job stats:")[1], re.MULTILINE))
    assert (plan["export"], plan["tune_scale"], plan["merge_experts"]) == ("2", "1", "1")
    assert not {"report", "metrics", "erase"} & set(plan)


def test_rank_and_precision_are_of_the_config(tmp_path):
    changes = {"export": {"rank": 4, "dtype": "float16"}}
    done = Workdir(tmp_path).run("--dry-run", f"{FOLDER}/esd-u/kohya", f"{FOLDER}/esd-u/pipeline", changes=changes)
    assert done.returncode == 0, done.stdout


def test_what_cannot_be_exported_is_one_sentence_and_nothing_starts(tmp_path):
    for target, said in (
        ("sld-max/pipeline", "sld-max acts while images are rendered and has no weights to export"),
        ("esd-u/kohya", "esd-u is no LoRA of the run: kohya of it needs a rank"),
    ):
        done = Workdir(tmp_path).run(f"{FOLDER}/{target}")
        assert done.returncode == 1
        assert said in done.stdout.splitlines()[-1]
        assert "Traceback" not in done.stdout
