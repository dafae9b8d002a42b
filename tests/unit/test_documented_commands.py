"""Commands in README, CONTRIBUTING and docs are ones that there are, by the real parsers; none is run here.

A command is a line of an indented or fenced block, or inline code that begins with a program that is checked. Of inline
code, which may leave out what a command needs, the parts that are there are checked.
"""

import argparse
import ast
import json
import re
import shlex
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from snakemake import cli
from snakemake.utils import update_config
from snakes import ROOT, read_snakefile

from safetydpo.cli import main
from safetydpo.cli.flags import whole_number
from safetydpo.config.loading import load_config
from safetydpo.config.run import Config
from safetydpo.config.types import section_of
from safetydpo.errors import SafetyDPOError

DOCUMENTS = sorted(
    p.relative_to(ROOT).as_posix()
    for p in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "config/README.md", *ROOT.glob("docs/*.md"))
)
# What is not held against a parser, and why. Paths in it are looked for all the same.
NOT_CHECKED = {
    "bash": "a script of the repository, without flags",
    "export": "of the shell",
    "python3 -m venv": "of Python",
    "pip": "its own; .ci/run goes the same way by make install",
    "apptainer": "not a Python package, and not at hand",
    "docker": "the same; what either runs in the container is checked",
    "hf": "of huggingface_hub; asks for a network",
    "eval-unlearn": "its own; tests/eval_unlearn/run calls it with such a config",
    "cd SPQR": "into a clone of others, whose scripts then are run",
    "cp": "of the shell",
}
# Blocks that are no commands, by their first word; those that are a mapping in YAML need no entry.
NO_COMMANDS = {
    "Snakefile": "the layout of the repository",
    "U": "a formula",
    "results/<run>/prompts/<category>.parquet": "the layout of results/",
}
# Where the two published commands have their flags.
PARSERS = {"inference.py": "src/safetydpo/cli/inference.py", "test.py": "src/safetydpo/cli/scores.py"}
PLACEHOLDER = re.compile(r"my-.*|[A-Z][A-Z_]*(\.csv)?|.*<[^>]+>.*|.*\.\.\.")
FILES = {"p", "py", "json", "yaml", "safetensors", "parquet"}
OURS = re.compile(
    r"(\.ci|benchmarks|config|docs|envs|resources|slurm|src|tests|workflow)/.*|[\w-]+\.(py|toml)|Snakefile"
)


class RefusedError(Exception):
    """What argparse says of arguments before it exits."""


def refuse(parser: argparse.ArgumentParser, message: str) -> None:
    raise RefusedError(message)


def blocks(text: str) -> Iterator[list[str]]:
    """The indented and the fenced blocks of a document, as their lines."""
    fenced, block = False, []
    for line in [*text.split("\n"), ""]:
        inside = fenced or line.startswith("    ")
        if line.startswith("```"):
            inside, fenced = False, not fenced
        if inside:
            block.append(line if fenced else line[4:])
        elif block:
            yield block
            block = []


def commands(text: str) -> Iterator[tuple[str, bool]]:
    """The commands of a document, each with whether it is whole; AssertionError at a block that is nothing known."""
    for lines in blocks(text):
        first = lines[0].split()[0]
        if checker(lines[0]) or not_checked(lines[0]):
            yield from ((line, True) for line in "\n".join(lines).replace("\\\n", " ").split("\n") if line.strip())
        else:
            assert first in NO_COMMANDS or isinstance(yaml.safe_load("\n".join(lines)), dict), lines[0]
    for code in re.findall(r"`([^`\n]+)`", re.sub(r"^(    |```).*$", "", text, flags=re.MULTILINE)):
        if " " in code and checker(code):
            yield code, False


def words_of(command: str) -> list[str]:
    words = shlex.split(command, comments=True)
    return [words[0].removeprefix(".venv/bin/"), *words[1:]]


def not_checked(command: str) -> bool:
    line = " ".join(words_of(command)) + " "
    return any(line.startswith(f"{name} ") for name in NOT_CHECKED)


def checker(command: str):
    """What checks the arguments of a program; None for a program that nothing here knows."""
    return {"make": make, "snakemake": snakemake, "safetydpo": safetydpo, "python": python}.get(words_of(command)[0])


def faults(command: str, whole: bool = True) -> list[str]:
    """What is wrong with a command, in words; nothing where it is right."""
    words = words_of(command)
    found = [f"no file {word}" for word in words if OURS.fullmatch(word) and not placeholder(word) and not there(word)]
    check = checker(command)
    if check is None:
        inside = words.index("snakemake") if "snakemake" in words else len(words)  # of a container
        found += snakemake(words[inside + 1 :], whole) if words[inside:] else []
        return found if not_checked(command) else [*found, f"what is {words[0]}?"]
    for choice in alternatives([word for word in words[1:] if word != "..."]):
        found += [fault for fault in check(choice, whole) if fault not in found]
    return found


def placeholder(word: str) -> bool:
    return PLACEHOLDER.fullmatch(word) is not None


def there(path: str) -> bool:
    return (ROOT / path).exists()


def alternatives(words: list[str]) -> list[list[str]]:
    """`--metrics ip|fid`: a list of words for each."""
    sides = [word.split("|") for word in words]
    return [[side[min(i, len(side) - 1)] for side in sides] for i in range(max(map(len, sides), default=1))]


def make(words: list[str], whole: bool) -> list[str]:
    targets = set(re.findall(r"^([\w-][\w -]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    known = {name for names in targets for name in names.split()}
    return [f"no target {word}" for word in words if "=" not in word and word not in known]


def parsed(parser: argparse.ArgumentParser, words: list[str], whole: bool) -> list[str]:
    """What a parser says of arguments; of those that are not whole, which flags it does not know."""
    if not whole:
        flags = [word for word in words if word.startswith("--")]
        return [f"no flag {flag}" for flag in flags if flag not in parser._option_string_actions]
    try:
        parser.parse_args(words)
    except (RefusedError, SafetyDPOError) as error:
        return [str(error)]
    return []


def python(words: list[str], whole: bool) -> list[str]:
    file = words[0] if words[0] != "-m" else f"src/{words[1].replace('.', '/')}/__main__.py"
    path = ROOT / PARSERS.get(file, file)
    if not path.exists():
        return [f"no file {file}"]
    if file not in PARSERS and "__main__" not in path.read_text():
        return [f"{file} is no command"]
    return parsed(parser_in(path), words[1 if words[0] != "-m" else 2 :], whole)


@cache
def parser_in(path: Path) -> argparse.ArgumentParser:
    """The parser that a script makes, of the calls in its source: to import it takes torch. Left out are
    choices and types of more than literals and the names below.
    """
    parser = argparse.ArgumentParser(prog=path.name)
    source = ast.parse(path.read_text())
    known = {"Path": Path, "json": json, "argparse": argparse, "whole_number": whole_number, "sorted": sorted}
    for node in source.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            with suppress(ValueError):
                known[node.targets[0].id] = ast.literal_eval(node.value)
    calls = [node for node in ast.walk(source) if isinstance(node, ast.Call)]
    for call in sorted(calls, key=lambda node: node.lineno):
        if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
            options = {}
            for keyword in call.keywords:
                if keyword.arg not in ("help", "default"):
                    with suppress(NameError):
                        options[keyword.arg] = eval(ast.unparse(keyword.value), known)
            parser.add_argument(*map(ast.literal_eval, call.args), **options)
    return parser


def safetydpo(words: list[str], whole: bool) -> list[str]:
    parser = safetydpo_parser()
    if whole:
        return parsed(parser, words, whole)
    commands = next(action.choices for action in parser._actions if action.choices)
    return parsed(commands[words[0]], words[1:], whole) if words[0] in commands else [f"no command {words[0]}"]


@cache
def safetydpo_parser() -> argparse.ArgumentParser:
    """The parser that `main` makes, taken from it before it reads."""
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            argparse.ArgumentParser, "parse_args", lambda parser, _: made.append(parser) or refuse(parser, "")
        )
        with pytest.raises(RefusedError):
            main([])
    return made[0]


@cache
def snakemake_parser(profile: str | None) -> argparse.ArgumentParser:
    return cli.get_argument_parser(profiles=profile and [profile])


def snakemake(words: list[str], whole: bool) -> list[str]:
    profile = words[words.index("--profile") + 1] if "--profile" in words[:-1] else None
    if profile and not there(f"{profile}/config.yaml"):
        return [f"no profile {profile}"]
    try:
        args = snakemake_parser(profile).parse_args(words)
        settings = cli.parse_config([item for item in args.config or () if not placeholder(item.partition("=")[2])])
    except (RefusedError, cli.CliException) as error:
        return [str(error)]
    files = [str(file) for file in args.configfile if not placeholder(str(file))]
    if lost := [f"no file {file}" for file in files if not there(file)]:
        return lost
    known = workflow(tuple(files), json.dumps(settings))
    if isinstance(known, str):
        return [known]
    named = [*args.targets, *(args.until or ()), *(args.forcerun or ())]
    rules = {rule.name: rule for rule in known.rules}
    return [
        f"no rule or file {name}"
        for name in map(str, named)
        if not placeholder(name) and name not in rules and not any(rule.is_producer(name) for rule in rules.values())
    ]


@cache
def workflow(files: tuple[str, ...], settings: str) -> Any:
    """The workflow with a config; the sentence by which it ends where the config is wrong."""
    try:
        return read_snakefile(configs=tuple(map(Path, files)), settings=json.loads(settings))
    except SystemExit as end:
        return str(end)


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(argparse.ArgumentParser, "error", refuse)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_commands_are_ones_that_there_are(name):
    wrong = {}
    for command, whole in commands((ROOT / name).read_text()):
        if found := faults(command, whole):
            wrong[command] = found
    assert wrong == {}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_keys_of_the_config_are_ones_that_there_are(name):
    text = (ROOT / name).read_text()
    assert [key for key in re.findall(r"`([a-z_]+(?:\.[a-z0-9_]+)+)(?:: [^`]*)?`", text) if not is_key(key)] == []
    wrong = {block: found for block in examples(text) if (found := example_faults(block))}
    assert wrong == {}


def is_key(dotted: str) -> bool:
    """Whether a section has the key; also of the name of a file, and what is in no section."""
    first, *_, last = names = dotted.split(".")
    section = Config if first in Config.model_fields and last not in FILES else None
    for name in names:
        if section is None:  # below a key with free values, such as model.call
            return True
        if name not in section.model_fields:
            return False
        section = section_of(section.model_fields[name].annotation)
    return True


def examples(text: str) -> Iterator[str]:
    """Blocks that are sections of the config."""
    for lines in blocks(text):
        block = "\n".join(lines)
        if re.match(r"[a-z_]+:(\s|$)", block) and {*yaml.safe_load(block)} <= {*Config.model_fields}:
            yield block


def example_faults(block: str) -> list[str]:
    """What is wrong in an example, once it is part of the shipped config; not what the rest of that then lacks."""
    values, example = yaml.safe_load((ROOT / "config/config.yaml").read_text()), yaml.safe_load(block)
    update_config(values, example)
    try:
        load_config(values)
    except SafetyDPOError as error:
        lines = [line.strip() for line in str(error).split("\n")]
        return [line for line in lines if line.split(".")[0] in example]
    return []


def test_a_wrong_key_is_found():
    assert [is_key(key) for key in ("train.beta", "model.call.anything", "prompts.p", "some.where")] == [True] * 4
    assert [is_key(key) for key in ("train.bet", "train.preserve.weights", "evaluate.matrix_")] == [False] * 3
    assert list(examples("As in\n\n    judges:\n      ip: q16\n\nand\n\n    executor: slurm\n")) == [
        "judges:\n  ip: q16"
    ]
    assert example_faults("judges:\n  ipp: q16") == ["judges.ipp: no such key"]


def test_commands_are_found_in_blocks_fences_and_lines():
    text = """# A page

    make test   # not `make fast`
    snakemake --cores 2 \\
        --dry-run

As `python test.py --metrics` does, `inference.py` too, and
`safetydpo summary RUN`:

```bash
bash .ci/run
```

    judges:
      ip: mine
"""
    assert [(words_of(command), whole) for command, whole in commands(text)] == [
        (["make", "test"], True),
        (["snakemake", "--cores", "2", "--dry-run"], True),
        (["bash", ".ci/run"], True),
        (["python", "test.py", "--metrics"], False),
        (["safetydpo", "summary", "RUN"], False),
    ]
    with pytest.raises(AssertionError, match="frobnicate --all"):
        list(commands("Do\n\n    frobnicate --all\n"))


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("make demon", "no target demon"),
        ("frobnicate --all", "what is frobnicate?"),
        ("bash .ci/runn", "no file .ci/runn"),
        ("pip install --constraint envs/pins.txt", "no file envs/pins.txt"),
        ("snakemake --cores 2 --confgfile config/sd15.yaml", "unrecognized arguments: --confgfile"),
        ("snakemake --cores two", "must be integer"),
        ("snakemake --cores 2 --configfile config/sd51.yaml", "no file config/sd51.yaml"),
        ("snakemake --cores 2 --configfile config/sd15.yaml all", "no file all"),
        ("snakemake --cores 2 --config sed=1", "sed: no such key"),
        ("snakemake --cores 2 --config seed=one", "seed"),
        ("snakemake --cores 2 -- ablation_los", "no rule or file ablation_los"),
        ("snakemake --cores 2 --until prompt", "no rule or file prompt"),
        ("snakemake --cores 2 --forcerun merge_expert", "no rule or file merge_expert"),
        ("snakemake --cores 1 results/demo/export/merged-co-merge/pipelines", "no rule or file results/demo/export"),
        ("snakemake --cores 1 results/demo/report.htm", "no rule or file results/demo/report.htm"),
        ("docker run --rm safetydpo snakemake --cores 2 --configfile config/sd51.yaml", "no file config/sd51.yaml"),
        ("snakemake --profile slrum", "no profile slrum"),
        ("snakemake --profile slurm --confg seed=1", "unrecognized arguments: --confg"),
        ("safetydpo sumary results/demo", "sumary"),
        ("safetydpo seeds", "runs"),
        ("safetydpo export results/demo --method merged-co-merge --to DIR --format pipelines", "pipelines"),
        ("python inference.py --model-path M --prompts_path P.csv --save_path DIR", "--model_path"),
        ("python inference.py --model_path M", "--prompts_path, --save_path"),
        ("python test.py --metrics ip|clips --target_folder DIR", "clips"),
        ("python benchmarks/gpu_hour.py", "no file benchmarks/gpu_hour.py"),
        ("python benchmarks/gpu_hours.py --tflops many", "many"),
        ("python benchmarks/recipes.py", "benchmarks/recipes.py is no command"),
        ("python -m safetydpo.demo.made", "no file src/safetydpo/demo/made/__main__.py"),
    ],
)
def test_what_is_wrong_with_a_command_is_found(command, fault):
    found = faults(command)
    assert fault in " ".join(found), found


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        ("safetydpo adit", "adit"),
        ("python inference.py --model-path", "no flag --model-path"),
        ("snakemake ... --until train", "no rule or file train"),
    ],
)
def test_so_it_is_in_a_line(code, fault):
    assert fault in " ".join(faults(code, whole=False))


@pytest.mark.parametrize(
    "code", ["python inference.py --model_path", "safetydpo export", "snakemake --unlock", "make docs"]
)
def test_inline_code_need_not_be_whole(code):
    assert faults(code, whole=False) == []
