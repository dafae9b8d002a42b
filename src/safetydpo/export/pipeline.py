"""A whole diffusers folder, the update in its weights: what the workflow renders with."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from safetydpo.export.request import Asked, Made
from safetydpo.models.folders import PICKLES, folder_of
from safetydpo.models.index import Index

LOAD = """```python
import torch
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained("this folder", dtype=torch.{dtype}{missing})
```"""
INDEX, CONFIG = "model_index.json", "config.json"
# Files of the source that come along: its licence goes with its weights.
LICENCES = ("license", "licence", "notice")
IGNORED = shutil.ignore_patterns(".*", *(f"*{suffix}" for suffix in PICKLES))


def make(asked: Asked) -> Made:
    """The method's pipeline in the precision that it was rendered with, or that is asked for."""
    dtype = asked.dtype or asked.config.model.dtype
    pipeline = asked.open(dtype)
    name = pipeline.config.get("_name_or_path")
    source = folder_of(name) if name else None
    parts = [part for part, kind in _index(source).items() if _is_part(kind)]
    left = sorted(part for part in parts if not _comes(pipeline, part, source))
    notes = [f"Left out, since the source's files are not here: {', '.join(left)}."] if left else []

    def save(folder: Path) -> None:
        if source is None:  # not of a folder that could be kept as it is
            pipeline.save_pretrained(folder)
        else:
            _save(pipeline, source, folder)
        for config in folder.rglob("*.json"):
            _without_paths(config)

    missing = "".join(f", {part}=None" for part in Index(asked.config.model).missing)
    return Made(save, LOAD.format(dtype=dtype, missing=missing), notes)


def _index(source: Path | None) -> dict[str, Any]:
    return json.loads((source / INDEX).read_text(encoding="utf-8")) if source else {}


def _is_part(kind: Any) -> bool:
    return isinstance(kind, list) and any(kind)


def _comes(pipeline: Any, part: str, source: Path | None) -> bool:
    """Whether a part is there: in memory, or as files that no code hides in."""
    if isinstance(getattr(pipeline, part, None), torch.nn.Module):
        return True
    files = [path.suffix for path in (source / part).glob("[!.]*")] if source else []
    return bool(files) and (".safetensors" in files or not any(suffix in PICKLES for suffix in files))


def _save(pipeline: Any, source: Path, folder: Path) -> None:
    """Weights from memory; scheduler, tokenizers and what else the source has (a safety checker) as they are there."""
    index = _index(source)
    for part, kind in index.items():
        if not _is_part(kind):
            continue
        module = getattr(pipeline, part, None)
        if isinstance(module, torch.nn.Module):
            module.save_pretrained(folder / part)  # type: ignore[operator]
        elif _comes(pipeline, part, source):
            shutil.copytree(source / part, folder / part, ignore=IGNORED)
        else:
            index[part] = [None, None]
            if part == "safety_checker":
                index["requires_safety_checker"] = False
    for path in source.iterdir():
        if path.is_file() and path.name.lower().startswith(LICENCES):
            shutil.copy(path, folder / path.name)
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _without_paths(config: Path) -> None:
    """Take out where on this machine a part was loaded from."""
    values = json.loads(config.read_text(encoding="utf-8"))
    if isinstance(values, dict) and values.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
