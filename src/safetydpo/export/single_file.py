"""A checkpoint of Stable Diffusion 1.x, 2.x or XL in its original layout."""

from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import FromSingleFileMixin

from safetydpo.errors import SafetyDPOError
from safetydpo.export.header import architecture_of, modelspec
from safetydpo.export.request import Asked, Made
from safetydpo.models.folders import folder_of
from safetydpo.models.index import UNREADABLE, UNUSED
from safetydpo.models.ldm import clip_weights, open_clip_weights, unet_weights, vae_weights
from safetydpo.storage.files import write_safetensors

FILE = "model.safetensors"
LOAD = """ComfyUI: put `model.safetensors` into `models/checkpoints`, node `Load Checkpoint`. A1111: into
`models/Stable-diffusion`. diffusers:

```python
from diffusers import {kind}

pipe = {kind}.from_single_file("model.safetensors", config="{base}")
```"""
PREDICTION = (
    "The model predicts v, which the file cannot say: in A1111 put a .yaml with `parameterization: v` beside it, in "
    "ComfyUI take `ModelSamplingDiscrete`, where they do not find out themselves."
)


def make(asked: Asked) -> Made:
    """The method's pipeline in the precision that it was rendered with, or that is asked for."""
    dtype = asked.dtype or asked.config.model.dtype
    pipeline: Any = asked.open(dtype)
    kind, source = type(pipeline), folder_of(pipeline.config.get("_name_or_path") or asked.config.model.id)
    if not issubclass(kind, FromSingleFileMixin) or pipeline.family.kind.name != "unet" or source is None:
        raise SafetyDPOError(f"single-file cannot be had of {asked.model_name}, a {kind.__name__}: take `pipeline`.")
    try:
        tensors = {name: weight.contiguous() for name, weight in checkpoint(pipeline).items()}
    except KeyError as error:
        raise SafetyDPOError(
            f"single-file cannot be had of {asked.model_name}: its {error.args[0]} has no place in the original "
            "layout; take `pipeline`."
        ) from None
    spec = modelspec(architecture_of(pipeline), asked, adapter=False, diffusers_keys=False)
    header = {"format": "pt", **spec, **asked.header}

    def save(folder: Path) -> None:
        write_safetensors(tensors, folder / FILE, header)
        if fault := misread(pipeline, folder / FILE, source):
            raise SafetyDPOError(
                f"single-file cannot be had of {asked.model_name}: diffusers does not read the file back as it is "
                f"meant ({fault}); take `pipeline`."
            )

    load = LOAD.format(kind=kind.__name__, base=asked.model_name)
    return Made(save, load, [PREDICTION] if pipeline.scheduler.config.get("prediction_type") == "v_prediction" else [])


def checkpoint(pipeline: Any) -> dict[str, torch.Tensor]:
    """All weights of a pipeline in the original layout; KeyError with one that has no place there."""
    found = unet_weights(pipeline.unet) | vae_weights(pipeline.vae)
    first, second = (getattr(pipeline, part, None) for part in ("text_encoder", "text_encoder_2"))
    if first is None:
        raise KeyError("second text encoder without a first")
    if second is not None:
        heads = (f"conditioner.embedders.{i}" for i in range(2))
        return found | clip_weights(first, next(heads)) | open_clip_weights(second, next(heads))
    # OpenAI's CLIP has an activation that only it has; SD 2's is OpenCLIP's
    weights = clip_weights if first.config.hidden_act == "quick_gelu" else open_clip_weights
    return found | weights(first, "cond_stage_model")


def misread(pipeline: Any, file: Path, source: Path) -> str:
    """What diffusers reads of a checkpoint and is not the pipeline's; "" where all of it is."""
    parts = pipeline.components
    unused = {part: None for part in UNUSED if part in parts}
    try:
        kind: Any = type(pipeline)
        read = kind.from_single_file(str(file), config=str(source), local_files_only=True, **unused)
    except (*UNREADABLE, KeyError, IndexError, RuntimeError) as error:
        return (str(error).strip() or type(error).__name__).split("\n")[0][:200]
    if (scaling := pipeline.vae.config.scaling_factor) != read.vae.config.scaling_factor:
        return f"its VAE's scaling factor {scaling:g} is in no checkpoint"
    for part, module in parts.items():
        if not isinstance(module, torch.nn.Module):
            continue
        theirs = read.components[part].state_dict()
        for name, weight in module.state_dict().items():
            if name not in theirs or not weight.float().equal(theirs[name].float()):
                return f"it reads another {name} of the {part}"
    return ""
