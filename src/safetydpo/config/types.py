"""What config sections are made of."""

import os
from collections.abc import Iterable
from types import NoneType
from typing import Annotated, Any, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import CoreSchema, core_schema


def _expanded(path: str) -> str:
    """A path as the system takes it: `~` is a home folder there to the shell alone."""
    if any(character < " " for character in path):
        raise ValueError("a path has no line breaks or other control characters")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ValueError(f"no home folder is known for `{path.split('/')[0]}`: write the path in full")
    return expanded


Name = Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$", max_length=60)]
# A file, a folder or a hub id.
UserPath = Annotated[str, Field(min_length=1), AfterValidator(_expanded)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
# Upper bounds are beyond every real use: they catch the zeros too many that would cost a night, or the machine.
Count = Annotated[int, Field(ge=1, le=10**6)]
Many = Annotated[int, Field(ge=1, le=10**12)]
Shards = Annotated[int, Field(ge=1, le=10**4)]
Pixels = Annotated[int, Field(ge=8, le=8192, multiple_of=8)]


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values cannot change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _null(cls, values: Any) -> Any:
        """`--config 'tune={path: null}'`: what stands in braces there comes as text."""
        if not isinstance(values, dict):
            return values
        nullable = {name for name, field in cls.model_fields.items() if NoneType in get_args(field.annotation)}
        return {key: None if value == "null" and key in nullable else value for key, value in values.items()}


class OneOf:
    """One of a registry's names: `Annotated[str, OneOf(STRATEGIES)]` is checked and shown as a Literal of them."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        del source, handler
        return core_schema.literal_schema(list(self.names))


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, by itself, in a list or where it is not null; None for plain values."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
