"""Config of the model to align."""

from typing import Annotated, Literal

from pydantic import Field

from safetydpo.config.types import Count, Pixels, Section, UserPath


class Model(Section):
    """The text-to-image model to align, and how it renders."""

    id: UserPath = Field(description="Folder of a diffusers pipeline, or a hub id")
    vae: UserPath | None = Field(
        None, description="Folder or hub id of another VAE for it (SDXL has one for half precision)"
    )
    height: Pixels = Field(description="Image height, pixels")
    width: Pixels = Field(description="Image width, pixels")
    num_inference_steps: Annotated[int, Field(ge=1, le=1000)] = Field(description="Denoising steps")
    guidance_scale: Annotated[float, Field(ge=1)] = Field(description="Classifier-free guidance; 1 turns it off")
    batch_size: Count = Field(description="Prompts rendered at once; does not change the images")
    dtype: Literal["float32", "float16", "bfloat16"] = Field("float32", description="Precision of rendering")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")] = Field("auto", description="auto, cpu, cuda")
