"""Running the real workflow in a folder of its own."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
REDUCED = ROOT / "tests/end_to_end/reduced.yaml"
# What a run of the workflow reads of the repository.
WORKFLOW = ("Snakefile", "workflow", "config", "envs", "src")


def copy_of_the_sources(folder: Path) -> Path:
    """The workflow and the library in another folder, for a test that edits them."""
    for name in WORKFLOW:
        source, skipped = ROOT / name, shutil.ignore_patterns("__pycache__", "*.egg-info")
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=skipped)
        else:
            shutil.copy2(source, folder / name)
    return folder


def read_snakefile(snakefile: Path = ROOT / "Snakefile", configs: tuple[Path, ...] = (), settings: dict | None = None):
    """The workflow as Snakemake reads it, with all its rules, here in this process; SystemExit where it ends itself."""
    from snakemake.api import SnakemakeApi
    from snakemake.settings.types import ConfigSettings, OutputSettings, ResourceSettings

    with pytest.MonkeyPatch.context() as patch, SnakemakeApi(OutputSettings()) as api:
        patch.chdir(ROOT)
        patch.setattr(sys, "path", [*sys.path])  # to which Snakemake adds folders
        patch.setenv("SAFETYDPO_ROOT", "")  # which the Snakefile sets
        return api.workflow(
            resource_settings=ResourceSettings(cores=1),
            config_settings=ConfigSettings(config=settings or {}, configfiles=[*configs]),
            snakefile=snakefile,
        )._workflow


class Workdir:
    """A folder to run the workflow in: Snakefile and library of `sources`, demo models, its own results and locks."""

    def __init__(self, folder: Path, sources: Path = ROOT) -> None:
        self.folder, self.sources = folder, sources
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "resources").exists():
            (folder / "resources").symlink_to(ROOT / "resources")

    def copy(self, folder: Path) -> "Workdir":
        """The same state in another folder (hard links: finished files are never written to)."""
        shutil.copytree(self.folder, folder, symlinks=True, copy_function=shutil.copy2)
        return Workdir(folder)

    def command(self, *args: str, changes: dict | None = None, configs: tuple[Path, ...] = (REDUCED,)) -> list[str]:
        """The snakemake command line; `changes` is one more overlay."""
        files = list(configs)
        if changes is not None:
            files.append(self.folder / f"changes-{os.getpid()}.yaml")
            files[-1].write_text(yaml.safe_dump(changes))
        overlays = ["--configfile", *map(str, files)] if files else []
        base = [sys.executable, "-m", "snakemake", "--cores", "2", "--scheduler", "greedy", "--snakefile"]
        return [*base, str(self.sources / "Snakefile"), "--directory", str(self.folder), *args, *overlays]

    def run(self, *args: str, changes: dict | None = None, configs: tuple[Path, ...] = (REDUCED,), timeout: int = 1800):
        """Run snakemake; returns the completed process with stdout and stderr together."""
        command = self.command(*args, changes=changes, configs=configs)
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(self.sources / "src")}
        return subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout, env=environment
        )

    def planned(
        self, changes: dict | None = None, configs: tuple[Path, ...] = (REDUCED,), targets: tuple[str, ...] = ()
    ) -> dict[str, int]:
        """Rule -> number of jobs that a dry run plans."""
        done = self.run("--dry-run", *targets, changes=changes, configs=configs)
        assert done.returncode == 0, done.stdout
        if "Nothing to be done" in done.stdout:
            return {}
        table = done.stdout.split("Job stats:")[1].split("total")[0]
        return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}
