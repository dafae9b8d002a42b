"""From YAML values to a checked config, or every error of it in one list."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from safetydpo.config.checks import problems_of, problems_of_files
from safetydpo.config.run import Config
from safetydpo.config.types import section_of
from safetydpo.errors import SafetyDPOError

Place = tuple[int | str, ...]  # keys and positions from a part of the config to an error in it
MERGE = "tag:yaml.org,2002:merge"  # `<<`, which may be given more than once


def load_config(values: dict[str, Any]) -> Config:
    """Check a config as YAML gives it; SafetyDPOError names every bad key, and every name that is not there, a line
    each.
    """
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        lines, wrong = _lines(error), {item["loc"] for item in error.errors()}
    if () not in wrong:  # single values are wrong, so that the parts were not held against each other yet
        lines += problems_of(_sound(Config, values, wrong), partial=True)
    raise SafetyDPOError("Config errors:\n  " + "\n  ".join(lines))


def planned_config(values: dict[str, Any], files: Iterable[Path]) -> Config:
    """The config of a run to be planned, merged of config files; SafetyDPOError as load_config, and where a config file
    gives a key twice or a user's file has too few rows.
    """
    refuse_repeated_keys(files)
    config = load_config(values)
    if lines := list(problems_of_files(config)):
        raise SafetyDPOError("Config errors:\n  " + "\n  ".join(lines))
    return config


def read_config(path: Path) -> Config:
    """The resolved config that a run wrote; SafetyDPOError where it is missing or not whole."""
    if not Path(path).exists():
        raise SafetyDPOError(f"{path} is missing: rerun snakemake, it will make it.")
    try:
        return load_config(read_yaml(path))
    except SafetyDPOError as error:
        raise SafetyDPOError(f"{path} is no whole config of a run: delete it and rerun snakemake. {error}") from None


def _lines(error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors():
        path = ".".join(map(str, item["loc"]))
        if item["type"] == "value_error" and not path:
            lines += str(item["ctx"]["error"]).split("\n")  # type: ignore[index]
        elif item["type"] == "extra_forbidden":
            lines.append(f"{path}: no such key")
        elif item["type"] == "missing":
            lines.append(f"{path}: missing")
        elif item["type"] == "value_error" and isinstance(item["input"], dict):  # of a section's keys together
            lines.append(f"{path}: {item['ctx']['error']}")  # type: ignore[index]
        else:
            shown = item["input"] if not isinstance(item["input"], dict | list) else type(item["input"]).__name__
            lines.append(f"{path or 'config'}: {item['msg'].removeprefix('Value error, ')} (got {shown!r})")
    return lines


def _sound(section: type[BaseModel], values: dict[str, Any], wrong: set[Place]) -> BaseModel:
    """A section of what is right in its values; it lacks the attribute of a key that is wrong or missing.

    wrong: places of the errors in it. A part that contradicts itself, an error of no single key, is wrong as a whole.
    """
    found, absent = {}, []
    for name, field in section.model_fields.items():
        within = {place[1:] for place in wrong if place[:1] == (name,)}
        value = values.get(name)
        if within:
            value = _sound_value(field.annotation, value, within)
            if value is None:
                absent.append(name)
            else:
                found[name] = value
        elif name in values:
            found[name] = _parsed(field, value)
    part = section.model_construct(**found)
    for name in absent:  # to which the line above has given its default
        vars(part).pop(name, None)
    return part


def _sound_value(annotation: Any, value: Any, wrong: set[Place]) -> Any:
    """What is right in the value of a key that holds a section or a list of them; None where that is nothing."""
    section = section_of(annotation)
    if section is None or () in wrong:
        return None
    if isinstance(value, dict):
        return _sound(section, value, wrong)
    parts = [{place[1:] for place in wrong if place[0] == i} for i in range(len(value))]
    if any(() in part for part in parts):
        return None
    if any(part and not isinstance(item, dict) for item, part in zip(value, parts, strict=True)):
        return None
    return [
        _sound(section, item, part) if part else section.model_validate(item)
        for item, part in zip(value, parts, strict=True)
    ]


def _parsed(field: FieldInfo, value: Any) -> Any:
    """A value without errors as its key has it."""
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[valid-type]
    return adapter.validate_python(value)


def read_yaml(path: Path | str) -> Any:
    """The values of a YAML file; SafetyDPOError where it is none, cannot be read, or gives a key twice."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = yaml.safe_load(text)
    except OSError as error:
        raise SafetyDPOError(f"{path} cannot be read ({error.strerror}).") from None
    except UnicodeDecodeError as error:
        raise SafetyDPOError(f"{path} is not YAML (byte {error.start} is not UTF-8).") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: the date 2026-13-45
        raise SafetyDPOError(f"{path} is not YAML ({_reason(error)}).") from None
    _refuse_repeated_keys(path, text)
    return values


def refuse_repeated_keys(paths: Iterable[Path | str]) -> None:
    """SafetyDPOError where a YAML file, already found readable, gives a key twice: the last would win in silence."""
    for path in paths:
        with suppress(yaml.YAMLError):  # JSON with tabs
            _refuse_repeated_keys(path, Path(path).read_text(encoding="utf-8"))


def _reason(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return str(error).splitlines()[0]


def _refuse_repeated_keys(path: Path | str, text: str) -> None:
    root = yaml.compose(text, yaml.SafeLoader)
    if lines := list(_repeated(root, "", set())) if root else []:
        raise SafetyDPOError(f"{path} gives a key twice, of which the last alone would count:\n  " + "\n  ".join(lines))


def _repeated(node: yaml.Node, place: str, seen: set[int]) -> Iterator[str]:
    """A line for each key under a node that its mapping has already. seen: nodes that aliases bring again."""
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for i, item in enumerate(node.value):
            yield from _repeated(item, f"{place}{i}.", seen)
        return
    lines: dict[tuple[str, str], int] = {}
    for key, value in node.value:
        name = (key.tag, str(key.value))
        if name in lines:
            line = key.start_mark.line + 1
            yield f"line {line}: {place}{key.value}, first given in line {lines[name]}; put both into one"
        if key.tag != MERGE:
            lines.setdefault(name, key.start_mark.line + 1)
        yield from _repeated(value, f"{place}{key.value}.", seen)
