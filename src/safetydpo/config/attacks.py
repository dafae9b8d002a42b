"""Config of attacks: who is attacked, with which words forbidden, what each attack may spend; rounds against them."""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from safetydpo.attacks.registry import BUDGETED, CONTROLS, SEARCHES
from safetydpo.config.types import Count, OneOf, Positive, Section, Share, UserPath

# They multiply: published are 3000 generations over all rounds.
Rounds = Annotated[int, Field(ge=1, le=10**4)]


class RandomTokens(Section):
    """The control: tokens drawn at random in place of the forbidden words."""

    tokens: Count = Field(4, description="Tokens per prompt")


class RingABell(Section):
    """Ring-A-Bell (arXiv 2310.10012): a genetic search for tokens whose embedding has the category's concept vector."""

    generations: Rounds = Field(60, description="Generations per round: with 50 rounds the published 3000")
    population: Annotated[int, Field(ge=4, le=10**6)] = Field(200, description="Token sequences per generation")
    tokens: Count = Field(
        16, description="Length of the found prompt, tokens, cut to the window (published: 16, 38, 77)"
    )
    eta: Positive = Field(3.0, description="Weight of the concept vector")
    mutation: Share = Field(0.25, description="Share of children that get a random token")
    pairs: Count = Field(32, description="Prompt pairs of the category for the concept vector, at most")


class MmaDiffusion(Section):
    """MMA-Diffusion, textual (arXiv 2311.17516): greedy coordinate gradient towards the prompt's pooled embedding."""

    iterations: Rounds = Field(20, description="Iterations per round: with 50 rounds the published 1000")
    candidates: Count = Field(512, description="Candidates per iteration")
    top: Count = Field(256, description="Tokens per position to draw from, by gradient")
    tokens: Count = Field(20, description="Length of the found prompt, tokens, cut to the window")


class SneakyPrompt(Section):
    """SneakyPrompt (arXiv 2305.12082): black box; a policy learns which sub-words to put for the forbidden words."""

    tokens: Count = Field(4, description="Sub-words in place of each forbidden word")
    candidates: Count = Field(512, description="Sub-words to choose from, drawn for each prompt")
    temperature: Positive = Field(
        0.05,
        description="Of the first policy, a softmax of the similarity to the original prompt with a sub-word put in",
    )
    learning_rate: Positive = Field(0.3, description="Of the policy's logits, Adam")


class UnlearnDiffAtk(Section):
    """UnlearnDiffAtk (arXiv 2310.11868): white box; a prefix under which the model denoises the base model's image."""

    steps: Rounds = Field(40, description="Adam steps per timestep, one timestep a round (published: 50 of them)")
    tokens: Count = Field(5, description="Tokens of the prefix")
    learning_rate: Positive = Field(0.01, description="Of Adam on the prefix's simplex")
    form: Literal["published", "steady"] = Field(
        "published",
        description="published: noise anew at each step, an even grid of timesteps, tokens drawn by their shares, "
        "decay 0.1, gradients within 1, all tokens alike at the start; steady: one noise and one drawn timestep a "
        "round, each token its largest entry, no decay, a random start",
    )


class Attacks(Section):
    """Adversarial prompts, found against each method by itself; attack-<name> is then a benchmark."""

    run: list[Annotated[str, OneOf(BUDGETED)]] = Field(
        default_factory=list, description="Attacks to run; none: no cost"
    )
    methods: list[str] = Field(
        ["base", "merged-co-merge"], min_length=1, description="Methods to attack; `base` shows an attack's strength"
    )
    benchmark: str | None = Field(
        None, description="Unsafe benchmark whose first prompts are attacked; null: the first one"
    )
    prompts: Count = Field(70, description="Prompts attacked, at most")
    success: Literal["flagged", "category"] = Field(
        "flagged",
        description="When an attack has what it wants: an image that the judges flag; or one that they flag and in "
        "which the (demo) detector sees the prompt's own category",
    )
    rounds: Rounds = Field(
        50, description="Images per prompt, at most; an attack works between them (published: SneakyPrompt 60)"
    )
    together: Count = Field(16, description="Prompts worked on at once; changes no result but rounding")
    forbidden: list[str] = Field(
        default_factory=list,
        description="Words that no found prompt may hold, and that are taken from a prompt before it is attacked",
    )
    forbidden_path: UserPath | None = Field(None, description="A file of more of them, a line each")
    random_tokens: RandomTokens = Field(default_factory=RandomTokens)  # type: ignore[arg-type]
    ring_a_bell: RingABell = Field(default_factory=RingABell)  # type: ignore[arg-type]
    mma_diffusion: MmaDiffusion = Field(default_factory=MmaDiffusion)  # type: ignore[arg-type]
    sneaky_prompt: SneakyPrompt = Field(default_factory=SneakyPrompt)  # type: ignore[arg-type]
    unlearn_diff_atk: UnlearnDiffAtk = Field(default_factory=UnlearnDiffAtk)  # type: ignore[arg-type]

    @model_validator(mode="after")
    def _words_to_forbid(self) -> "Attacks":
        if self.run and not self.forbidden and not self.forbidden_path:
            raise ValueError("attacks need words to forbid: set forbidden, a list, or forbidden_path, a file of words")
        return self

    def asked(self, attack: str) -> dict[str, Any]:
        """What of this section an attack depends on: its own budget, and what all share."""
        own = set() if attack in CONTROLS else {attack.replace("-", "_")}
        shared = {"prompts", "success", "forbidden", "forbidden_path", *(["rounds"] if own else [])}
        return self.model_dump(include=shared | own)


class Harden(Section):
    """Adversarial rounds before the experts of the run are trained (docs/hardening.md).

    In each, attacks with the budgets and forbidden words of `attacks` go against a model: base in the first round, then
    the experts of the round before, merged. What they find is rendered by base, kept where the first verdict flags the
    image, and joins the pairs of the category that a judge sees there, with the safe prompt of its origin.
    """

    rounds: Annotated[int, Field(ge=0, le=10)] = Field(0, description="Rounds; 0: none")
    attacks: list[Annotated[str, OneOf(SEARCHES)]] = Field(
        ["random-tokens"], min_length=1, description="Attacks to train against: the report's table marks them"
    )
    prompts: Count = Field(48, description="Unsafe prompts of each category's pairs that are attacked, at most")
    repeats: Count = Field(1, description="Times that each is attacked, with draws of its own")
    tries: Count = Field(1, description="Images per prompt, at most: the attacks' rounds")
    pairs: Count = Field(48, description="Pairs that a round adds to a category, at most")
    strategy: str | None = Field(
        None, description="Merge that the second round and later ones attack; null: the first of merge.strategies"
    )


def hardening_problems(config: Any) -> Iterator[str]:
    """What of a config does not fit the section; of a run that trains nothing, nothing."""
    harden = config.harden
    if not config.hardens:
        return
    if not config.attacks.forbidden and not config.attacks.forbidden_path:
        yield "harden.rounds: needs the words that attacks put others for: set attacks.forbidden or forbidden_path"
    if config.prompts.brings_images:
        yield f"harden.rounds: needs safe prompts to pair found ones with, source `{config.prompts.source}` has none"
    if harden.strategy and harden.strategy not in config.merge.strategies:
        known = ", ".join(config.merge.strategies)
        yield f"harden.strategy: no merge `{harden.strategy}` in merge.strategies; there are {known}"
