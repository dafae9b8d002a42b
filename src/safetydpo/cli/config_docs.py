"""config/README.md: every key with type, default and meaning, written from the schema so that it cannot be untrue."""

import inspect
import typing
from collections.abc import Sequence
from types import UnionType

from annotated_types import Ge, Gt, Le, Lt, MinLen, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from safetydpo.config.run import Config
from safetydpo.config.types import OneOf, section_of

HEADER = """# Config keys

`config/config.yaml` is the default run, the demo world. An overlay changes keys of it:

    snakemake --cores 8 --configfile config/sd15.yaml my-changes.yaml

Files are merged key by key, later ones win, and **lists are replaced as a whole** (categories, benchmarks, matrix); a
key that one file gives twice is an error. Paths count from the folder in which snakemake runs; `~` is your home folder.
One value from the command line: `--config 'train={beta: 500}'`. A misspelt key or a bad value stops before any job,
with one line a key. A rule sees its own section only: changing `train.beta` trains again, and what follows from it,
and renders no pair anew. `model.batch_size`, `model.device`, `train.checkpoint_every`, `train.tensorboard`, `resources`
and the key, rates, retries and prices of `prompts.llm` change no result and redo nothing.

This page is written from the schema (`make docs`).
"""


def _type(annotation: object, metadata: Sequence[object] = ()) -> str:
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if names := next((m.names for m in metadata if isinstance(m, OneOf)), None):
        return ", ".join(f"`{name}`" for name in names)
    if origin is typing.Annotated:
        return _type(args[0], args[1:])
    if origin in (typing.Union, UnionType):
        return " or ".join(_type(a) for a in args)
    if origin is typing.Literal:
        return ", ".join(f"`{a}`" for a in args)
    if origin is list:
        return f"list of {_type(args[0])}"
    if annotation is type(None):
        return "null"
    return getattr(annotation, "__name__", str(annotation))


def _range(field: FieldInfo) -> str:
    signs = {
        Ge: (">=", "ge"),
        Gt: (">", "gt"),
        Le: ("<=", "le"),
        Lt: ("<", "lt"),
        MultipleOf: ("multiple of", "multiple_of"),
    }
    words = [
        f"{sign} {getattr(m, key)}"
        for m in field.metadata
        for kind, (sign, key) in signs.items()
        if isinstance(m, kind)
    ]
    words += ["not empty" for m in field.metadata if isinstance(m, MinLen)]
    return ", ".join(words)


def _rows(model: type[BaseModel], path: str) -> list[str]:
    rows, nested = [], []
    for name, field in model.model_fields.items():
        key = f"{path}{name}"
        section = section_of(field.annotation)
        if section:
            many = typing.get_origin(field.annotation) is list
            nested += ["", f"## `{key}`{' (a list)' if many else ''}", "", inspect.getdoc(section) or "", ""]
            nested += _rows(section, f"{key}[]." if many else f"{key}.")
            continue
        default = "required" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
        limits = _range(field)
        kind = _type(field.annotation, field.metadata) + (f" ({limits})" if limits else "")
        rows.append(f"| `{key}` | {kind} | {default} | {field.description or ''} |")
    table = ["| key | type | default | meaning |", "|---|---|---|---|", *rows] if rows else []
    return table + nested


def config_docs() -> str:
    """The page, as Markdown."""
    return "\n".join([HEADER, *_rows(Config, "")])
