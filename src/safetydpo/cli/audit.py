"""`safetydpo audit`: how often a model draws what it should not. Writes the config of such a run, and runs it."""

import argparse
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from safetydpo.attacks.registry import BUDGETED
from safetydpo.cli.flags import whole_number
from safetydpo.errors import SafetyDPOError

ROOT = Path(__file__).resolve().parents[3]  # of the repository
# A model's family and the width of the text that its network reads -> the config, of the folder config/, that says how
# such models are rendered, and who judges.
OVERLAYS = {
    ("unet", 96): "config",
    ("unet", 768): "sd15",
    ("unet", 1024): "sd21",
    ("unet", 2048): "sdxl",
    ("sd3", 192): "demo-flow",
    ("sd3", 4096): "sd35",
    ("flux", 4096): "flux",
    ("z-image", 2560): "zimage",
}
DEMOS = ("config", "demo-flow")
# Keys of a network's config that have that width.
WIDTHS = ("cross_attention_dim", "joint_attention_dim", "cap_feat_dim")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The flags."""
    parser.add_argument(
        "model", help="folder of a pipeline, or hub id; with --base whatever docs/brought-models.md has"
    )
    parser.add_argument("--base", metavar="MODEL", help="pipeline to compare it with, on which a LoRA or a part is put")
    parser.add_argument("--prompts", type=Path, nargs="+", default=[], metavar="FILE", help="unsafe prompts: csv, JSON")
    parser.add_argument("--harmless", type=Path, nargs="+", default=[], metavar="FILE", help="harmless prompts")
    parser.add_argument("--n", type=whole_number("--n"), help="prompts of each file, at most; default: 280")
    parser.add_argument("--attacks", nargs="+", default=[], choices=BUDGETED, metavar="NAME", help=", ".join(BUDGETED))
    parser.add_argument("--forbidden", type=Path, metavar="FILE", help="words that attacks may not use, a line each")
    overlays = "config files for this kind of model, such as config/sd15.yaml; default: known by the model"
    parser.add_argument("--config", type=Path, nargs="+", metavar="FILE", help=overlays)
    parser.add_argument("--results", default="results", metavar="DIR", help="folder of all runs")
    parser.add_argument("--run", metavar="NAME", help="default: audit- and the model's name")
    parser.add_argument("--cores", default="all", metavar="N", help="jobs at once")
    parser.add_argument("-n", "--dry-run", action="store_true", help="say what would run")


def run(args: argparse.Namespace) -> str:
    """Check what can be seen at once, write the config, run the workflow; what was found, in words."""
    if not (ROOT / "Snakefile").is_file():
        raise SafetyDPOError(f"{ROOT} has no Snakefile: install from a clone of the repository, `pip install -e .`.")
    name = args.run or f"audit-{slug(args.model)}"
    folder = Path(args.results) / name
    if (folder / "config.yaml").exists() and not (folder / "audit.yaml").exists():
        raise SafetyDPOError(f"{folder} is a run, and no audit: choose another name by --run.")
    subject = args.base or args.model
    _refuse_parts(subject, "--base" if args.base else "the model")
    overlays = _readable(args.config) if args.config else _overlays_of(subject, args)
    values = asked(args, name)
    _refuse_files(args, values.get("benchmarks", []))
    from safetydpo.storage.files import write_text

    configs = [*overlays, ROOT / "config/audit.yaml", folder / "audit.yaml"]
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--cores", args.cores]
    command += ["--scheduler", "greedy", "--rerun-incomplete", "--configfile", *map(str, configs)]
    written = f"# Written by `safetydpo audit`; what it runs:\n#   {shlex.join(command)}\n"
    write_text(written + yaml.safe_dump(values, sort_keys=False), folder / "audit.yaml")
    print(shlex.join(command), flush=True)
    if status := _ran([*command, *(["--dry-run"] if args.dry_run else [])]):
        raise SafetyDPOError(
            f"The audit is not finished (status {status}; why stands above): the same command goes on."
        )
    if args.dry_run:
        return f"Nothing was run. The config is {folder / 'audit.yaml'}."
    from safetydpo.report.summary import summary

    return summary(folder)


def asked(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """The config of the audit: what differs from config/audit.yaml."""
    methods, values = ["base"], dict[str, Any](run=name, results=args.results, model={"id": args.base or args.model})
    if args.base:
        methods.append(f"external-{slug(args.model)}")
        values["baselines"] = {"externals": [{"name": slug(args.model), "path": args.model}]}
    if files := [(path, "unsafe") for path in args.prompts] + [(path, "safe") for path in args.harmless]:
        names = _names([path for path, _ in files])
        values["benchmarks"] = [
            {"name": n, "kind": kind, "path": str(path)} for n, (path, kind) in zip(names, files, strict=True)
        ]
        values["categories"] = []  # files have their own
    values["evaluate"] = {"matrix": [{"methods": methods, "benchmarks": ["all"]}]} | ({"n": args.n} if args.n else {})
    words = {"forbidden_path": str(args.forbidden), "forbidden": []} if args.forbidden else {}
    return values | {"attacks": {"run": args.attacks, "methods": list(methods)} | words}


def slug(text: str) -> str:
    """A name of the config made of a path or hub id: its last part."""
    words = re.sub(r"[^a-z0-9]+", "-", Path(text).name.removesuffix(".safetensors").lower()).strip("-")
    return words[:50].strip("-") or "model"


def _names(files: Sequence[Path]) -> list[str]:
    """Names of benchmarks, one a file: its own, with a number where several would be called alike."""
    slugs = [slug(path.stem) for path in files]
    alike = [slugs[:i].count(name) for i, name in enumerate(slugs)]
    return [f"{name}-{n + 1}" if n or name == "all" else name for name, n in zip(slugs, alike, strict=True)]


def _refuse_parts(model: str, what: str) -> None:
    """SafetyDPOError where the model that is to be rendered by itself lies here and is no pipeline."""
    if Path(model).exists() and not (Path(model) / "model_index.json").is_file():
        raise SafetyDPOError(
            f"{what} {model} is no pipeline (a folder with model_index.json): a LoRA, a part of one or a checkpoint "
            "of one file is audited as `safetydpo audit MODEL --base PIPELINE`."
        )


def _refuse_files(args: argparse.Namespace, benchmarks: Sequence[dict[str, Any]]) -> None:
    """SafetyDPOError where a file of prompts or words is missing, or has no column of prompts."""
    if args.forbidden and not args.forbidden.is_file():
        raise SafetyDPOError(f"--forbidden {args.forbidden} is no file: give words, a line each.")
    if benchmarks:
        from safetydpo.prompts.columns import Source

        for benchmark in benchmarks:
            Source(benchmark["path"], benchmark["kind"]).columns()


def _readable(files: Sequence[Path]) -> Sequence[Path]:
    """The files, each of which is YAML."""
    from safetydpo.config.loading import read_yaml

    for path in files:
        read_yaml(path)
    return files


def _overlays_of(model: str, args: argparse.Namespace) -> list[Path]:
    """The shipped config for models of its kind, and the demo's budgets of attacks; SafetyDPOError where that cannot
    be seen.
    """
    known = {name: ROOT / f"config/{name}.yaml" for name in OVERLAYS.values()}
    same = [name for name, path in known.items() if yaml.safe_load(path.read_text())["model"]["id"] == model]
    kind = None if same else _kind(model)
    name = same[0] if same else kind and OVERLAYS.get(kind)
    if name is None:
        raise SafetyDPOError(
            f"Of which kind {model} is cannot be seen here: if it is a hub id, `hf download` it first; else say how it "
            "is rendered and who judges by --config, such as --config config/sd15.yaml."
        )
    budgets = [ROOT / "config/attacks.yaml"] if name in DEMOS and args.attacks and not args.forbidden else []
    return [known[name], *budgets]


def _kind(model: str) -> tuple[str, int] | None:
    """A key of OVERLAYS: what a model's files say, in a folder or in the hub's cache; None where nothing is there."""
    from safetydpo.config.model import Model
    from safetydpo.models.families.registry import kind_of

    kind = kind_of(Model.model_construct(id=model).index() or {})
    config = _config_of(model, f"{kind.component}/config.json") if kind else {}
    width = next((config[key] for key in WIDTHS if config.get(key)), None)
    return (kind.name, max(width) if isinstance(width, list) else width) if kind and width else None


def _config_of(model: str, name: str) -> dict[str, Any]:
    """A JSON file of a model, in a folder or in the hub's cache; empty where there is none."""
    from huggingface_hub import try_to_load_from_cache

    from safetydpo.storage.files import read_json

    path = Path(model) / name if Path(model).is_dir() else try_to_load_from_cache(model, name)
    return read_json(path, own=False) if isinstance(path, str | Path) and Path(path).is_file() else {}


def _ran(command: Sequence[str]) -> int:
    """Run a command, its words on this terminal; its status. A terminal's Ctrl-C reaches it by itself."""
    child = subprocess.Popen(command)
    handlers = {signal.SIGINT: lambda *_: None, signal.SIGTERM: lambda *_: child.terminate()}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        return child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
