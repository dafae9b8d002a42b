"""Config of the model to align."""

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from safetydpo.config.types import Count, Pixels, Section, UserPath

# What every pipeline is called with here.
ASKED = {"prompt", "height", "width", "num_inference_steps", "guidance_scale", "generator", "latents", "output_type"}
# How more arguments begin that jobs give, or that would make other images than a job asked for.
TAKEN = (
    "prompt",
    "negative_prompt",
    "pooled_",
    "negative_pooled_",
    "num_images_per_prompt",
    "return_dict",
    "callback_",
)


def _free(call: dict[str, Any]) -> dict[str, Any]:
    if taken := [name for name in call if name in ASKED or name.startswith(TAKEN)]:
        raise ValueError(f"`{taken[0]}` is given by each job, or by a key of its own: take it out")
    length = call.get("max_sequence_length", 1)
    if type(length) is not int or length < 1:
        raise ValueError(f"`max_sequence_length` is a number of tokens, 1 or more, not {length!r}")
    return call


Call = Annotated[dict[str, Any], AfterValidator(_free)]


class Model(Section):
    """The text-to-image model to align, and how it renders."""

    id: UserPath = Field(description="Folder of a diffusers pipeline, or a hub id")
    vae: UserPath | None = Field(
        None, description="Folder or hub id of another VAE for it (SDXL has one for half precision)"
    )
    height: Pixels = Field(description="Image height, pixels")
    width: Pixels = Field(description="Image width, pixels")
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] = Field(description="Denoising steps")
    guidance_scale: Annotated[float, Field(ge=1)] = Field(
        description="Guidance w, as uncond + w (text - uncond): 1 turns it off; of a model that guidance was distilled "
        "into (FLUX.1 dev), the number it is given"
    )
    call: Call = Field(
        default_factory=dict,
        description="More arguments of the pipeline's call, such as max_sequence_length: 256 (of T5, of a Qwen)",
    )
    batch_size: Count = Field(description="Prompts rendered at once; does not change the images")
    dtype: Literal["float32", "float16", "bfloat16"] = Field(
        "float32", description="Precision of rendering, and of a transformer's text embeddings on disk"
    )
    compile: bool = Field(
        False,
        description="torch.compile of the network where images are rendered: minutes at a job's first batch for "
        "shorter ones after it; needs a C++ compiler, on a GPU triton (docs/training.md)",
    )
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field("auto", description="auto, cpu, cuda")

    def index(self) -> dict[str, Any] | None:
        """Its model_index.json; None where neither a folder nor the hub's cache has one that is whole."""
        path = Path(self.id) / "model_index.json"
        try:
            if not Path(self.id).is_dir():
                from huggingface_hub import try_to_load_from_cache  # a third of a second, which a folder does not need

                path = Path(try_to_load_from_cache(self.id, path.name) or "")  # type: ignore[arg-type]
            values = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):  # of a name that is no hub id too
            return None
        return values if isinstance(values, dict) else None
