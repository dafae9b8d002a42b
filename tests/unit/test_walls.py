"""The walls between rules, scripts, stages and leaves."""

import ast
import subprocess
import sys

import pytest
from snakes import ROOT

STAGES = {"prompts", "benchmarks", "render", "features", "train", "merge", "baselines", "tune", "attacks", "evaluate"}
STAGES |= {"report"}
SOURCES = sorted((ROOT / "src/safetydpo").rglob("*.py"))
SCRIPTS = sorted((ROOT / "workflow/scripts").glob("*.py"))


def imported(path) -> set[str]:
    """Dotted names that a file imports."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def stage_of(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "safetydpo" and len(parts) > 1 and parts[1] in STAGES else None


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.stem)
def test_the_library_knows_no_snakemake_and_stages_do_not_meet(path):
    names = imported(path)
    assert not {n for n in names if n.split(".")[0] == "snakemake"}
    inside = path.relative_to(ROOT / "src/safetydpo").with_suffix("").parts[0]
    if inside != "cli":
        assert {stage_of(n) for n in names} - {None, inside} == set()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_scripts_are_thin(path):
    tree = ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= 25
    assert not [n for n in ast.walk(tree) if isinstance(n, ast.If | ast.For | ast.While | ast.Try | ast.FunctionDef)]


def test_rules_need_no_torch():
    code = "import sys, safetydpo.config.run, safetydpo.methods.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=lambda p: p.stem)
def test_files_and_functions_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name
