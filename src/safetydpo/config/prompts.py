"""Config of the prompt stage: categories, where pairs come from, and the language model that may write them."""

from typing import Annotated, Any, Literal

from pydantic import Field, JsonValue, model_validator

from safetydpo.config.secrets import is_variable, secrets_in, url_fault
from safetydpo.config.types import Count, Many, Name, OneOf, Section, Share, UserPath
from safetydpo.prompts.registry import SOURCES


class Category(Section):
    """One unsafe category: it gets an expert of its own."""

    name: Name = Field(description="Id in file names")
    concepts: list[str] = Field(
        default_factory=list, description="Unsafe concepts; empty: all that the prompt source has for the category"
    )


class Prices(Section):
    """What the server charges, so that the cost is shown."""

    input: Annotated[float, Field(ge=0)] = Field(description="Price of a million tokens sent")
    output: Annotated[float, Field(ge=0)] = Field(description="Price of a million tokens written")


class LLM(Section):
    """The language model that writes prompt pairs for source `openai`, behind any OpenAI-compatible server."""

    model: str = Field(min_length=1, description="The model's name on the server")
    base_url: str | None = Field(
        None,
        description="Such as http://localhost:8000/v1; null: OPENAI_BASE_URL of the environment, else OpenAI's own",
    )
    api_key_env: str | None = Field(
        "OPENAI_API_KEY", description="Environment variable that holds the key; null: the server wants none"
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(1.0, description="null: not sent")
    seed: Annotated[int, Field(ge=0)] | None = Field(
        0, description="Every request's own seed derives from it; null: none is sent"
    )
    max_tokens: Count | None = Field(1024, description="Length of a reply, tokens, at most; null: not sent")
    extra: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="More fields of the request, such as max_completion_tokens; reports show them, so keys, tokens and "
        "passwords are refused",
    )
    reply: Literal["auto", "json", "text"] = Field(
        "auto",
        description="json: structured output by a JSON schema; text: a prompt a line; auto: json, and text where the "
        "server refuses the schema",
    )
    prompts_per_request: Count = Field(10, description="Unsafe prompts asked for at once")
    n: Count | None = Field(None, description="Unsafe prompts per concept; null: prompts.pairs spread over concepts")
    rounds: Count = Field(4, description="Rounds without a new pair after which a concept is given up")
    concurrency: Annotated[int, Field(ge=1, le=1000)] = Field(16, description="Requests in flight at once")
    timeout: Annotated[float, Field(gt=0, le=3600)] = Field(120.0, description="Seconds for a try, to the last byte")
    retries: Annotated[int, Field(ge=0, le=100)] = Field(
        6, description="Retries of a request after 429, 5xx, a lost connection or a timeout"
    )
    requests_per_minute: Many | None = Field(None, description="Rate limit; null: none")
    tokens_per_minute: Many | None = Field(None, description="Rate limit on tokens sent and written; null: none")
    token_budget: Many | None = Field(None, description="Tokens that the run may use, all categories; null: no limit")
    prices: Prices | None = Field(None, description="To show the cost: {input, output}, per million tokens")
    instructions: UserPath = Field(
        "config/instructions", description="Folder of the instruction texts: concepts.txt, unsafe.txt, safe.txt"
    )
    concepts: UserPath = Field("config/concepts", description="Folder of concept files, <category>.yaml")
    examples: UserPath | None = Field(
        None, description="csv or Parquet with category, unsafe_prompt, safe_prompt: pairs shown to the model"
    )

    @model_validator(mode="before")  # an error of a single key would show its value
    @classmethod
    def _without_secrets(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        variable, url = values.get("api_key_env"), values.get("base_url")
        if isinstance(variable, str) and variable and not is_variable(variable):
            raise ValueError("`api_key_env` must be the name of an environment variable that holds the key")
        if isinstance(url, str) and (fault := url_fault(url)):
            raise ValueError(f"`base_url` {fault}")
        if place := next(secrets_in({name: value for name, value in values.items() if name != "base_url"}), None):
            raise ValueError(
                f"`{place}` holds a secret, which reports and logs would show: the server's key belongs in the "
                "environment variable that `api_key_env` names, and no other is sent"
            )
        return values


class Prompts(Section):
    """Where prompt pairs come from, and which are kept."""

    source: Annotated[str, OneOf(SOURCES)] = Field(
        description="demo: the demo world's grammar; openai: a language model writes them (prompts.llm); coprov2: the "
        "published csv; pairs: csv or Parquet with unsafe_prompt, safe_prompt, category; folder: the published folder "
        "of images with captions, which are not rendered again"
    )
    path: UserPath | None = Field(None, description="The file or folder, for sources coprov2, pairs and folder")
    pairs: Count = Field(description="Pairs per category, at most")
    min_pairs: Count = Field(1, description="A category with fewer fails, with counts by reason")
    test_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="Share of pairs held out of training, for benchmarks of source `split`"
    )
    test_path: UserPath | None = Field(
        None, description="csv or Parquet with `prompt`: pairs whose unsafe prompt occurs there are marked as `leak`"
    )
    drop_leaks: bool = Field(False, description="Drop those pairs (the published training set keeps them)")
    window: bool | None = Field(
        None, description="Drop prompts longer than the model's text window; null: only those that source openai wrote"
    )
    min_similarity: Share | None = Field(
        None, description="Drop pairs whose text embeddings have a smaller cosine; the report shows the distribution"
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
        return self

    @property
    def written(self) -> bool:
        """Whether a language model writes the pairs."""
        return SOURCES[self.source].written

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
