"""The instruction texts that a language model gets: files that people edit, rendered with jinja2."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from safetydpo.config.prompts import LLM
from safetydpo.errors import SafetyDPOError
from safetydpo.storage.records import category_id
from safetydpo.storage.tables import read_rows

NAMES = ("concepts", "words", "unsafe", "safe", "judge")
# Pairs shown with an instruction, at most.
SHOWN = 5
# Words of a prompt at most; fewer where the model's text window holds fewer.
LONGEST = 40
BLANK = {"description": "", "concept": "", "count": 1, "prompt": "", "avoid": [], "longest": LONGEST}


class Instructions:
    """Templates of a folder; the category, `longest` and `examples` of the user's file, if any, are given to each.

    names: those that will be asked for. Raises SafetyDPOError where a file is missing or is no template.
    """

    def __init__(self, llm: LLM, category: str, description: str, names: Sequence[str], longest: int = LONGEST) -> None:
        environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        self.templates, self.examples = {}, examples_of(llm.examples, category)
        self.known = {**BLANK, "category": category, "description": description, "longest": longest}
        for name in names:
            path = Path(llm.instructions) / f"{name}.txt"
            try:
                template = environment.from_string(path.read_text(encoding="utf-8-sig"))
                template.globals = dict(template.globals)  # each render copies them, a ChainMap slowly
                self.templates[name] = template
            except FileNotFoundError:
                raise SafetyDPOError(f"{path} does not exist: prompts.llm.instructions must be its folder.") from None
            except UnicodeDecodeError as error:
                raise SafetyDPOError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from None
            except jinja2.TemplateSyntaxError as error:
                raise SafetyDPOError(f"{path} is not a jinja2 template (line {error.lineno}: {error}).") from None
            except OSError as error:
                raise SafetyDPOError(f"{path} cannot be read: {error.strerror}.") from None
        for name in names:  # before any request is paid for
            self.render(name, True)

    def render(self, name: str, plain: bool, **values: Any) -> str:
        """The text of an instruction; plain: a text a line is wanted, not JSON."""
        values = {"examples": self.examples, **self.known, **values}
        try:
            return self.templates[name].render(plain=plain, **values).strip()
        except jinja2.UndefinedError as error:
            raise SafetyDPOError(f"Instruction {name}.txt: {error}; config/README.md lists what it may use.") from None
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError) as error:
            raise SafetyDPOError(f"Instruction {name}.txt cannot be rendered: {error}.") from None

    def bare(self, name: str, concept: str) -> str:
        """What an instruction says in all forms, of whatever prompt: an answer that says the same is an echo."""
        return "\n".join(self.render(name, plain, concept=concept, examples=[]) for plain in (True, False))


def examples_of(path: str | None, category: str) -> list[dict[str, str]]:
    """The first pairs of a category in the user's file of examples."""
    if not path:
        return []
    rows = read_rows(path, ["category", "unsafe_prompt", "safe_prompt"])
    own = rows[rows.category.map(category_id) == category_id(category)]
    return pd.DataFrame(own)[["unsafe_prompt", "safe_prompt"]].head(SHOWN).to_dict("records")  # type: ignore[return-value]
