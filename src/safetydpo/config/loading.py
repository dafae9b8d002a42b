"""From YAML values to a checked config, or every error of it in one list."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from safetydpo.config.checks import problems_of
from safetydpo.config.run import Config
from safetydpo.config.types import section_of
from safetydpo.errors import SafetyDPOError

Place = tuple[int | str, ...]  # keys and positions from a part of the config to an error in it


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


def read_config(path: Path) -> Config:
    """The resolved config that a run wrote."""
    import yaml

    return load_config(yaml.safe_load(Path(path).read_text()))


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
    return [_sound(section, item, part) for item, part in zip(value, parts, strict=True)]


def _parsed(field: FieldInfo, value: Any) -> Any:
    """A value without errors as its key has it."""
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[valid-type]
    return adapter.validate_python(value)
