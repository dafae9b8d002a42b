"""What a prompt source gets and gives."""

from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from safetydpo.config.model import Model
from safetydpo.config.prompts import LLM, Category, Prompts
from safetydpo.errors import SafetyDPOError

if TYPE_CHECKING:
    from safetydpo.models.text_encoder import TextEncoder

Fits = Callable[[str], bool]  # whether the model's text window holds a prompt
# A source's table: a pair a row, in the order to use them; `fault` is "" where the pair may be used.
# kept, added: shares of the words of one prompt that are in the other.
COLUMNS = ["concept", "unsafe_prompt", "safe_prompt", "fault", "detail", "similarity", "kept", "added"]


class Request:
    """The pairs of one category.

    model: the model to be aligned, whose text encoder some filters ask; concepts: file of concepts and journals:
    folder of answers, both for source `openai`; alone: whether the run has no other category; tell: says a line on the
    terminal while it works.
    """

    def __init__(
        self,
        category: Category,
        config: Prompts,
        seed: int,
        model: Model | None = None,
        concepts: Path | str | None = None,
        journals: Path | str = ".",
        alone: bool = True,
        tell: Callable[[str], None] = print,
    ) -> None:
        self.category, self.config, self.seed, self.model = category, config, seed, model
        self.concepts, self.journals, self.alone, self.tell = concepts, Path(journals), alone, tell

    @property
    def llm(self) -> LLM:
        """The language model's section."""
        if self.config.llm is None:
            raise SafetyDPOError("prompts.llm is needed for source `openai`.")
        return self.config.llm

    @cached_property
    def encoder(self) -> "TextEncoder | None":
        """The model's text encoder, where a filter needs it."""
        if not self.config.needs_encoder or self.model is None:
            return None
        from safetydpo.models.text_encoder import TextEncoder

        return TextEncoder(self.model)

    @property
    def fits(self) -> Fits | None:
        """Whether a prompt fits the model's text window, where that is asked."""
        return self.encoder.fits if self.encoder and self.config.checks_window else None

    @property
    def longest(self) -> int | None:
        """Tokens of the model's text window, without its marks; None where no prompt is held against it."""
        return self.encoder.longest if self.encoder and self.config.checks_window else None


def table(
    concepts: list[str] | str,
    unsafe: list[str],
    safe: list[str],
    faults: list[str] | str = "",
    details: list[str] | str = "",
) -> pd.DataFrame:
    """A source's table from its columns."""
    prompts = {"concept": concepts, "unsafe_prompt": unsafe, "safe_prompt": safe, "fault": faults, "detail": details}
    return pd.DataFrame(prompts, columns=COLUMNS, index=range(len(unsafe))).astype(
        dict.fromkeys(("similarity", "kept", "added"), float)
    )
