"""Config of the methods to compare with: what they should keep from being drawn, and how they are made."""

from typing import Annotated

from pydantic import Field

from safetydpo.config.model import Call
from safetydpo.config.types import Count, Name, Positive, Section, UserPath
from safetydpo.methods.registry import method_of

# Safe Latent Diffusion's safety concept, which is also its negative prompt.
SLD_CONCEPT = (
    "an image showing hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, nudity, "
    "bodily fluids, blood, obscene gestures, illegal activity, drug use, theft, vandalism, weapons, child abuse, "
    "brutality, cruelty"
)
# The concepts that the published inappropriate-content settings of ESD and UCE erase.
ERASED = [
    "hate", "harassment", "violence", "suffering", "humiliation", "harm", "suicide", "sexual", "nudity",
    "bodily fluids", "blood",
]  # fmt: skip


class Esd(Section):
    """Erased Stable Diffusion (arXiv 2303.07345): fine-tuning away from a concept's own guidance."""

    steps: Count = Field(1000, description="Iterations; each erases one concept of the list")
    learning_rate: Positive = Field(1e-5, description="Adam's rate")
    eta: Positive = Field(1.0, description="Strength of the negative guidance in the target")
    guidance_scale: Annotated[float, Field(ge=1)] = Field(3.0, description="Guidance while denoising to the timestep")
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] = Field(
        50, description="Steps that the timestep is drawn from, DDIM's or, of flow matching, Euler's"
    )


class Uce(Section):
    """Unified Concept Editing (arXiv 2308.14761): cross-attention keys and values in closed form."""

    erase_scale: Positive = Field(1.0, description="Weight of the concepts to erase")
    preserve_scale: Positive = Field(1.0, description="Weight of the concepts to preserve")
    keep_scale: Positive = Field(0.5, description="Weight of the old matrix (lambda)")
    guide: str = Field("", description="Prompt whose values the erased concepts get")
    preserve: list[str] = Field(default_factory=list, description="Concepts to preserve, beside the empty prompt")
    retain: bool = Field(False, description="Preserve the prompts of train.preserve too")


class External(Section):
    """A model that others aligned, as the method external-<name>."""

    name: Name = Field(description="Id in method and file names")
    path: UserPath = Field(
        description="Pipeline (folder, hub id, or checkpoint of one file), folder of a UNet, transformer or text "
        "encoder, or LoRA (folder or file); docs/brought-models.md has all"
    )
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="Its own denoising steps; null: the model's"
    )
    guidance_scale: Annotated[float, Field(ge=1)] | None = Field(
        None, description="Its own guidance, as model.guidance_scale; null: the model's"
    )
    call: Call | None = Field(
        None, description="Its own model.call; null: the model's, none of a pipeline of another class"
    )


class Baselines(Section):
    """Methods to compare with; name those to run in evaluate.matrix."""

    concepts: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="Concepts that ESD and UCE erase; null: the published list"
    )
    sld_concept: str | None = Field(None, description="Safety concept of SLD; null: the published one")
    negative_prompt: str | None = Field(None, description="Negative prompt; null: the safety concept of SLD")
    esd: Esd = Field(default_factory=Esd)  # type: ignore[arg-type]
    uce: Uce = Field(default_factory=Uce)  # type: ignore[arg-type]
    externals: list[External] = Field(default_factory=list, description="Models that others aligned")

    @property
    def erased(self) -> list[str]:
        """The concepts that ESD and UCE erase."""
        return self.concepts or ERASED

    @property
    def safety_concept(self) -> str:
        """What SLD guides away from."""
        return self.sld_concept or SLD_CONCEPT

    @property
    def negative(self) -> str:
        """The negative prompt."""
        return self.negative_prompt or self.safety_concept

    def retains(self, eraser: str) -> bool:
        """Whether an eraser preserves the prompts of train.preserve too."""
        return any(getattr(getattr(self, key), "retain", False) for key in method_of(eraser).kind.erased_with)

    def external(self, name: str) -> External:
        """The external model of that name."""
        return next(e for e in self.externals if e.name == name)
