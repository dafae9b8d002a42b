"""Config of the prompt stage: categories, where pairs come from, and the language model that may write them."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from safetydpo.config.server import ChatServer
from safetydpo.config.types import Count, Name, OneOf, Section, Share, UserPath
from safetydpo.prompts.registry import SOURCES

# Overlap of words from which prompts are near duplicates: of six words, one differs.
NEAR = 0.7


class Category(Section):
    """One unsafe category: it gets an expert of its own."""

    name: Name = Field(description="Id in file names")
    concepts: list[str] = Field(
        default_factory=list, description="Unsafe concepts; empty: all that the prompt source has for the category"
    )


class LLM(ChatServer):
    """The language model that writes prompt pairs for source `openai`, behind any OpenAI-compatible server."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(1.0, description="null: not sent")
    prompts_per_request: Count = Field(10, description="Unsafe prompts asked for at once")
    n: Count | None = Field(None, description="Unsafe prompts per concept; null: prompts.pairs spread over concepts")
    patience: Count = Field(12, description="Requests in a row without a new pair after which a concept is given up")
    instructions: UserPath = Field(
        "config/instructions",
        description="Folder of the instruction texts: concepts.txt, words.txt, unsafe.txt, safe.txt, judge.txt",
    )
    concepts: UserPath = Field("config/concepts", description="Folder of concept files, <category>.yaml")
    examples: UserPath | None = Field(
        None, description="csv, JSON or Parquet with category, unsafe_prompt, safe_prompt: pairs shown to the model"
    )
    words: Annotated[int, Field(ge=0, le=100)] = Field(
        0, description="Words and forms that the model is asked for per concept, beside those of the concept file"
    )


class Filters(Section):
    """Checks that make a pair a pair, by the words of its prompts; docs/prompts.md shows an example of each."""

    noise: bool = Field(
        default=True,
        description="Drop what is no prompt: a refusal, a question, several in one, no letters, a web address, or an "
        "echo of the instruction",
    )
    min_words: Annotated[int, Field(ge=0, le=100)] = Field(default=3, description="Drop prompts of fewer words")
    max_words: Count | None = Field(
        default=50, description="Drop prompts of more words (the instructions ask for 40 at most); null: any length"
    )
    script: Literal["latin"] | None = Field(
        default="latin",
        description="Drop prompts of which a fifth of the letters are of another script; null: any will do",
    )
    concept_words: bool = Field(
        default=True,
        description="Drop pairs whose unsafe prompt has no word of the concept, in any form, or whose safe one has",
    )
    min_kept: Share | None = Field(
        default=0.4,
        description="Drop pairs whose safe prompt has fewer of the unsafe one's words, or all; null: not asked",
    )
    max_added: Share | None = Field(
        default=0.6,
        description="Drop pairs whose safe prompt has a greater share of words that are new; null: not asked",
    )
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=NEAR,
        description="Drop unsafe prompts that share so many of their words with an earlier one; null: keep them",
    )
    judge: bool = Field(
        default=False,
        description="Ask the same model whether each prompt shows the concept, and drop pairs that it denies",
    )


# A person's pairs are taken as they are.
NO_FILTERS = Filters(
    noise=False,
    min_words=0,
    max_words=None,
    script=None,
    concept_words=False,
    min_kept=None,
    max_added=None,
    near_duplicates=None,
)


class Prompts(Section):
    """Where prompt pairs come from, and which are kept."""

    source: Annotated[str, OneOf(SOURCES)] = Field(
        description="demo: the demo world's grammar; openai: a language model writes them (prompts.llm); coprov2: the "
        "published csv; pairs: csv, JSON or Parquet with unsafe_prompt, safe_prompt, category; folder: the published "
        "folder of images with captions, which are not rendered again"
    )
    path: UserPath | None = Field(None, description="The file or folder, for sources coprov2, pairs and folder")
    pairs: Count = Field(description="Pairs per category, at most")
    min_pairs: Count = Field(1, description="A category with fewer fails, with counts by reason")
    test_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of pairs held out of training, for benchmarks of source `split`"
    )
    test_path: UserPath | None = Field(
        None,
        description="csv, JSON or Parquet with `prompt`: pairs whose unsafe prompt occurs there are marked as `leak`",
    )
    drop_leaks: bool = Field(False, description="Drop those pairs (the published training set keeps them)")
    window: bool | None = Field(
        None, description="Drop prompts longer than the model's text window; null: only those that source openai wrote"
    )
    min_similarity: Share | None = Field(
        None, description="Drop pairs whose text embeddings have a smaller cosine; the report shows the distribution"
    )
    filters: Filters | None = Field(
        None,
        description="Checks by words; null: those of source openai with their defaults, and none for other sources",
    )
    expand_concepts: Annotated[int, Field(ge=0, le=10**4)] = Field(
        0, description="Concepts that the language model proposes per category, beside those of the concept file"
    )
    llm: LLM | None = Field(None, description="For source openai")

    @model_validator(mode="after")
    def _complete(self) -> "Prompts":
        if SOURCES[self.source].needs_path and not self.path:
            raise ValueError(f"source `{self.source}` needs prompts.path, the file or folder to read")
        if self.written and self.llm is None:
            raise ValueError(f"source `{self.source}` needs prompts.llm, at least its model")
        if self.drop_leaks and not self.test_path:
            raise ValueError("drop_leaks needs prompts.test_path, the prompts that must not train")
        if self.min_pairs > self.pairs:
            raise ValueError(f"min_pairs {self.min_pairs} is more than pairs, {self.pairs}")
        if self.min_pairs > (left := round(self.pairs * (1 - self.test_share))):
            raise ValueError(
                f"min_pairs {self.min_pairs} is more than the {left} that test_share {self.test_share:g} leaves to "
                f"train on of {self.pairs} pairs"
            )
        if self.filters and self.filters.judge and not self.written:
            raise ValueError(f"filters.judge asks the language model that writes, source `{self.source}` has none")
        return self

    @property
    def written(self) -> bool:
        """Whether a language model writes the pairs."""
        return SOURCES[self.source].written

    @property
    def instructions(self) -> list[str]:
        """Names of the instructions by which a language model writes and judges pairs."""
        return ["unsafe", "safe", *(["judge"] if self.checks.judge else [])] if self.written else []

    @property
    def checks(self) -> Filters:
        """The filters by words that hold."""
        return self.filters or (Filters() if self.written else NO_FILTERS)

    @property
    def near(self) -> float:
        """Overlap of words from which prompts are near duplicates, which are all trained on or all held out."""
        return self.checks.near_duplicates or NEAR

    @property
    def brings_images(self) -> bool:
        """Whether the source has the pairs' images too."""
        return SOURCES[self.source].brings_images

    @property
    def own_sets(self) -> bool:
        """Whether the source has retain and tuning prompts too."""
        return SOURCES[self.source].own_sets

    @property
    def checks_window(self) -> bool:
        """Whether prompts are held against the text window of the model to be aligned."""
        return self.written if self.window is None else self.window

    @property
    def needs_encoder(self) -> bool:
        """Whether a filter asks the text encoder of the model to be aligned."""
        return self.checks_window or self.min_similarity is not None

    @property
    def measures_similarity(self) -> bool:
        """Whether pairs are kept with the cosine of their text embeddings."""
        return self.min_similarity is not None or (self.written and self.needs_encoder)
