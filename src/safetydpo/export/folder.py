"""The folder of an export: whose it is, which files are in it."""

import hashlib
import json
from pathlib import Path
from typing import Any

from safetydpo.errors import SafetyDPOError

FACTS = "export.json"  # what made the folder, and its files: by it a folder is known as one of ours
NOT_OURS = (".snakemake_timestamp",)  # what Snakemake puts into a folder that a rule made


def files_in(folder: Path) -> list[str]:
    """Names of the files under a folder, in order, without Snakemake's."""
    paths = (path for path in folder.rglob("*") if not path.is_dir() and path.name not in NOT_OURS)
    return sorted(path.relative_to(folder).as_posix() for path in paths)


def refuse_others(out: Path) -> None:
    """SafetyDPOError where the folder that an export would take the place of holds anything else."""
    todo = "give another folder, or empty this one"
    if out.exists() and not out.is_dir():
        raise SafetyDPOError(f"{out} is a file: give a folder.")
    there = files_in(out) if out.exists() else []
    if not there:
        return
    try:
        known = {FACTS, *json.loads((out / FACTS).read_text(encoding="utf-8"))["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        raise SafetyDPOError(f"{out} exists and is no export, it holds {there[0]}: {todo}.") from None
    if strange := [name for name in there if name not in known]:
        raise SafetyDPOError(f"{out} holds {strange[0]}, which no export wrote: {todo}.")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its name."""
    found = {}
    for name in files_in(folder):
        with (folder / name).open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def write_facts(folder: Path, header: dict[str, str], form: str) -> None:
    """Write what made the folder, with the hashes of all that is in it."""
    facts: dict[str, Any] = {"format": form, **json.loads(header["safetydpo"]), "files": digests(folder)}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
