"""Files that other programs read: the workflow catalog, GitHub, citation tools, container builders."""

import re
import tomllib

import yaml
from snakemake.io import is_flagged
from snakes import ROOT, WORKFLOW, read_snakefile

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(name: str):
    return yaml.safe_load((ROOT / name).read_text())


def test_the_citation_is_of_this_version():
    citation = read("CITATION.cff")
    assert [citation[key] for key in ("version", "license")] == [PROJECT["version"], PROJECT["license"]]
    assert citation["authors"][0]["name"] in (ROOT / "LICENSE").read_text()
    assert [reference["url"] for reference in citation["references"]] == ["https://arxiv.org/abs/2412.10493"]


def test_the_catalog_finds_the_workflow_its_deployment_and_its_config():
    usage = read(".snakemake-workflow-catalog.yml")["usage"]
    deployment = usage["software-stack-deployment"]
    workflow, found = read_snakefile(), read_snakefile(ROOT / "workflow/Snakefile")
    assert {rule.name for rule in found.rules} == {rule.name for rule in workflow.rules} | {"everything"}
    assert found.default_target == "everything"
    assert [*found.get_rule("everything").input] == [*workflow.get_rule("all").input] != []
    for seen in (workflow, found):
        assert seen.get_rule("features").conda_env == str(ROOT / "envs/cpu.yaml")
    assert deployment["conda"] is True
    assert deployment["apptainer"] == bool(workflow.get_rule("features").container_img)
    assert (
        usage["report"]
        == deployment["report"]
        == any(is_flagged(file, "report") for rule in workflow.rules for file in rule.output)
    )
    assert (ROOT / "config/README.md").exists()


def test_ci_on_github_is_ci_here():
    steps = read(".github/workflows/ci.yml")["jobs"]["check-and-test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == ["bash .ci/run"]
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    python = next(step["with"]["python-version"] for step in steps if "python" in step.get("uses", ""))
    assert PROJECT["requires-python"] == f">={python}"


def test_the_image_has_the_pins_and_all_that_a_run_reads():
    lines = (ROOT / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    words = [line.split() for line in lines if line and not line.startswith("#")]
    assert words[-2] == ["USER", "1000:1000"]
    [install] = [line for line in words if "pip" in line]
    assert install[install.index("--constraint") + 1] == "envs/constraints.txt"
    extras = re.findall(r"\.\[(.*)\]", install[-1])
    assert set(extras) <= set(PROJECT["optional-dependencies"]) - {"dev"}
    assert f"python:{PROJECT['requires-python'].removeprefix('>=')}-" in words[0][1]

    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    kept = {rule.removeprefix("!") for rule in rules if rule.startswith("!")}
    assert rules[0] == "*"
    assert all((ROOT / name).exists() for name in kept)
    assert {*WORKFLOW, "resources", "slurm", "pyproject.toml", "README.md", "inference.py", "test.py"} <= kept
    assert kept.isdisjoint({".git", ".venv", "results", "logs"})


def test_a_report_of_a_bug_has_what_it_takes():
    form = read(".github/ISSUE_TEMPLATE/bug.yml")
    asked = {part["id"] for part in form["body"] if part.get("validations", {}).get("required")}
    assert asked == {"said", "expected", "config", "versions"}
