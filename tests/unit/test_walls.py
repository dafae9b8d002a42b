"""The walls of the house: which room may use which, what rules and scripts may do, and how long a file may be."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from snakes import ROOT

# From the ground up. A file may use its own room and the rooms of lower floors; rooms of one floor do not know each
# other. Every room's registry stands nearly on the ground: config, rules and library all read it.
FLOORS = (
    ("errors",),
    ("registry",),
    ("config",),
    ("storage", "running", "demo"),
    ("llm",),
    ("models", "judges"),
    ("prompts", "features", "methods"),
    ("images", "training", "baselines", "attacks", "evaluation", "export"),
    ("merging", "report"),
    ("cli", "demo.making"),
)
FLOOR = {room: i for i, floor in enumerate(FLOORS) for room in floor}
LIBRARY = ROOT / "src/safetydpo"
SOURCES = sorted(LIBRARY.rglob("*.py"))
SCRIPTS = sorted((ROOT / "workflow/scripts").glob("*.py"))
RULES = [ROOT / "Snakefile", *sorted((ROOT / "workflow/rules").glob("*.smk"))]


def imported(text: str) -> set[str]:
    """Dotted names that a text imports, wherever in it, under TYPE_CHECKING too."""
    names = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def module_of(path: Path) -> str:
    """storage/files.py -> storage.files."""
    return ".".join(path.relative_to(LIBRARY).with_suffix("").parts)


def room_of(module: str) -> str:
    """The room of a module of ours (without `safetydpo.`); a registry is a room of its own, on the ground."""
    parts = module.split(".")
    if parts[-1] == "registry":
        return "registry"
    return "demo.making" if parts[:2] == ["demo", "making"] else parts[0]


def ours(text: str) -> set[str]:
    """Modules of ours that a text imports: prompts.stage of `from safetydpo.prompts.stage import write_pairs`."""
    found = set()
    for name in imported(text):
        if name.startswith("safetydpo."):
            parts = name.split(".")[1:]
            while parts and not (LIBRARY.joinpath(*parts).with_suffix(".py").exists() or _room(parts)):
                parts = parts[:-1]
            found.add(".".join(parts))
    return found


def _room(parts: list[str]) -> bool:
    return LIBRARY.joinpath(*parts, "__init__.py").exists()


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_a_file_uses_its_own_room_and_lower_floors(path):
    here, text = room_of(module_of(path)), path.read_text()
    assert not {name for name in imported(text) if name.split(".")[0] == "snakemake"}
    if here == "__init__":
        assert ours(text) == set()
        return
    above = {m for m in ours(text) if room_of(m) != here and FLOOR[room_of(m)] >= FLOOR[here]}
    assert above == set()


@pytest.mark.parametrize("path", SOURCES, ids=module_of)
def test_stages_meet_through_files(path):
    here = room_of(module_of(path))
    if here != "cli":
        assert {m for m in ours(path.read_text()) if m.endswith(".stage")} == set()


def test_the_house_has_rooms_of_a_few_files_each():
    assert {path.stem for path in LIBRARY.glob("*.py")} == {"__init__", "errors"}
    rooms = [path.parent for path in LIBRARY.rglob("__init__.py") if path.parent != LIBRARY]
    assert {room_of(module_of(room / "__init__.py").removesuffix(".__init__")) for room in rooms} == set(FLOOR) - {
        "errors",
        "registry",
    }
    for room in rooms:
        assert len(room.relative_to(LIBRARY).parts) <= 2, room
        assert 2 <= len([p for p in room.glob("*.py") if p.name != "__init__.py"]) <= 15, room


def test_every_room_has_its_tests():
    rooms = {path.parent.name for path in LIBRARY.glob("*/__init__.py")}
    assert rooms == {path.name for path in (ROOT / "tests/unit").iterdir() if path.is_dir() and path.name[0] != "_"}


def test_registries_and_rules_need_neither_torch_nor_pandas():
    names = {name for path in RULES for name in re.findall(r"^ *from (safetydpo[\w.]*) import", path.read_text(), re.M)}
    names |= {f"safetydpo.{module_of(path)}" for path in LIBRARY.rglob("registry.py")}
    assert {"safetydpo.config.loading", "safetydpo.report.contents", "safetydpo.models.families.registry"} <= names
    heavy = "{'torch', 'pandas', 'pyarrow', 'openai', 'diffusers'} & set(sys.modules)"
    code = f"import sys, {', '.join(sorted(names))}; print(*({heavy}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == ("", "")


# What the jobs of a stage start without: a start is most of what a job of the demo takes. (torch itself, and
# torch._dynamo, scipy and peft, which transformers and diffusers import whatever is asked of them, stay.)
SELDOM = {"torchmetrics", "datasets", "matplotlib", "sklearn", "onnxruntime", "tensorboard", "openai", "snakemake"}
MODELS = {"torch", "transformers", "diffusers", "accelerate", "peft", "scipy"}
WITHOUT = {
    "prompts": SELDOM | MODELS | {"PIL"},
    "judges": SELDOM | MODELS | {"PIL"},
    "judges.q16": SELDOM | {"transformers", "diffusers", "accelerate", "peft", "scipy"},  # of copy_judge
    "report": SELDOM - {"matplotlib"} | MODELS - {"scipy"},
    "evaluation": SELDOM | {"diffusers", "peft"},
    "images": SELDOM,
    "features": SELDOM,
    "training": SELDOM,
    "merging": SELDOM,
}


@pytest.mark.parametrize("name", WITHOUT)
def test_a_stage_imports_nothing_that_its_jobs_seldom_need(name):
    module = f"safetydpo.{name}" if "." in name else f"safetydpo.{name}.stage"
    code = f"import sys, {module}; print(*sorted({WITHOUT[name]!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_scripts_import_their_stage_while_the_collector_rests(path):
    blocks = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.With)]
    resting = [line for node in blocks if ast.unparse(node.items[0]) == "importing()" for line in node.body]
    assert all(isinstance(line, ast.ImportFrom) for line in resting)
    stages = {name for name in ours(path.read_text()) if name.endswith(".stage")}
    assert stages == {name for name in ours("\n".join(map(ast.unparse, resting))) if name.endswith(".stage")}


def test_nothing_imports_the_commands():
    for path in [*SOURCES, *SCRIPTS]:
        if room_of(module_of(path) if path in SOURCES else path.stem) != "cli":
            assert not {m for m in ours(path.read_text()) if m.split(".")[0] == "cli"}, path


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.stem)
def test_scripts_are_thin_and_call_a_stage(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 25
    assert not [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.If | ast.For | ast.While | ast.FunctionDef)]
    called = ours(text) - {m for m in ours(text) if room_of(m) in ("config", "running")}
    assert {m for m in called if not m.endswith(".stage")} <= {"prompts.request", "storage.files"}


def test_rules_have_the_names_of_rooms_and_scripts():
    rooms = {path.parent.name for path in LIBRARY.glob("*/stage.py")}
    files = {path.stem for path in RULES[1:]} - {
        "common",
        "hooks",
        "ablation",
        "hardening",
        "checks",
    }  # no stage of their own
    assert files == rooms - {"models", "judges", "methods"}  # checks.smk
    text = "".join(path.read_text() for path in RULES)
    assert set(re.findall(r'"\.\./scripts/(\w+)\.py"', text)) == {path.stem for path in SCRIPTS}
    for name in re.findall(r'"\.\./scripts/(\w+)\.py"', text):
        assert f"rule {name}:" in text


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=lambda p: p.stem)
def test_files_and_functions_stay_short(path):
    assert len(path.read_text().splitlines()) <= 400
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, node.name
