"""A checkpoint in the layout that such models were published in."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import FromSingleFileMixin
from diffusers.loaders.single_file_utils import SingleFileComponentError
from transformers import T5EncoderModel

from safetydpo.errors import SafetyDPOError
from safetydpo.export.header import architecture_of, modelspec
from safetydpo.export.request import Asked, Made
from safetydpo.models.folders import folder_of
from safetydpo.models.index import UNREADABLE, UNUSED
from safetydpo.models.pipeline import load_encoders
from safetydpo.models.single_file import parts_of
from safetydpo.storage.files import write_safetensors

FILE = "model.safetensors"
LOAD = """{programs} diffusers:

```python
from diffusers import {kind}

{before}pipe = {kind}.from_single_file("model.safetensors", config="{base}"{given})
{after}```"""
PROGRAMS = {
    "unet": "ComfyUI: put `model.safetensors` into `models/checkpoints`, node `Load Checkpoint`. A1111: into "
    "`models/Stable-diffusion`.",
    "transformer": "ComfyUI: put `model.safetensors` into `models/checkpoints`, node `Load Checkpoint`.",
}
NETWORK_ALONE = "ComfyUI: put `model.safetensors` into `models/diffusion_models`, node `Load Diffusion Model`."
BASE = 'base = {kind}.from_pretrained("{base}", {network}=None)\n'
DROPOUT = "pipe.{part}.eval()  # diffusers leaves its dropout on\n"
APART = "The file has no {parts}, for which there is no place in it: load the base's beside it."
PREDICTION = (
    "The model predicts v, which the file cannot say: in A1111 put a .yaml with `parameterization: v` beside it, in "
    "ComfyUI take `ModelSamplingDiscrete`, where they do not find out themselves."
)


def make(asked: Asked) -> Made:
    """The method's pipeline in the precision that it was rendered with, or that is asked for."""
    dtype = asked.dtype or asked.config.model.dtype
    pipeline: Any = asked.open(dtype)
    kind, source = type(pipeline), folder_of(pipeline.config.get("_name_or_path") or asked.config.model.id)
    if not issubclass(kind, FromSingleFileMixin) or source is None:
        raise SafetyDPOError(f"single-file cannot be had of {asked.model_name}, a {kind.__name__}: take `pipeline`.")
    try:
        tensors = {name: weight.contiguous() for name, weight in pipeline.family.checkpoint(pipeline).items()}
    except KeyError as error:
        raise SafetyDPOError(
            f"single-file cannot be had of {asked.model_name}: its {error.args[0]} has no place in the original "
            "layout; take `pipeline`."
        ) from None
    spec = modelspec(architecture_of(pipeline), asked, adapter=False, diffusers_keys=False)
    header = {"format": "pt", **spec, **asked.header}
    parts, apart = pipeline.components, parts_apart(pipeline, tensors)
    given = {part: getattr(load_encoders(asked.model(dtype)), part) for part in apart}
    given |= dict.fromkeys(absent(pipeline))

    def save(folder: Path) -> None:
        write_safetensors(tensors, folder / FILE, header)
        if fault := misread(pipeline, folder / FILE, source, given):
            raise SafetyDPOError(
                f"single-file cannot be had of {asked.model_name}: diffusers does not read the file back as it is "
                f"meant ({fault}); take `pipeline`."
            )

    notes = [PREDICTION] if pipeline.scheduler.config.get("prediction_type") == "v_prediction" else []
    notes += [APART.format(parts=" and ".join(apart))] if apart else []
    names = {"kind": kind.__name__, "base": asked.model_name}
    component = pipeline.family.kind.component
    load = LOAD.format(
        programs=NETWORK_ALONE if apart else PROGRAMS[component],
        before=BASE.format(network=component, **names) if apart else "",
        given="".join(f", {part}={f'base.{part}' if given[part] else None}" for part in given),
        after="".join(DROPOUT.format(part=x) for x, module in parts.items() if isinstance(module, T5EncoderModel)),
        **names,
    )
    return Made(save, load, notes)


def parts_apart(pipeline: Any, tensors: Iterable[str]) -> list[str]:
    """Parts of a pipeline that are not in a checkpoint with these tensors."""
    classes = {part: type(module).__name__ for part, module in pipeline.components.items() if _has_weights(module)}
    return sorted(classes.keys() - set().union(*(parts_of(name, classes) for name in tensors)))


def absent(pipeline: Any) -> list[str]:
    """Parts that a pipeline does without, as SD3 does without T5, and that diffusers wants to be told of."""
    parts, optional = pipeline.components, type(pipeline)._optional_components
    return [part for part, module in parts.items() if module is None and part not in optional]


def _has_weights(part: Any) -> bool:
    return isinstance(part, torch.nn.Module)


def misread(pipeline: Any, file: Path, source: Path, given: dict[str, Any]) -> str:
    """What diffusers reads of a checkpoint and is not the pipeline's; "" where all of it is.

    given: parts that are not in it, of the base, or None.
    """
    parts = pipeline.components
    given = given | {part: None for part in UNUSED if part in parts}
    try:
        kind: Any = type(pipeline)
        read = kind.from_single_file(str(file), config=str(source), local_files_only=True, **given)
    except (*UNREADABLE, SingleFileComponentError, KeyError, IndexError, RuntimeError) as error:
        return (str(error).strip() or type(error).__name__).split("\n")[0][:200]
    if (scaling := pipeline.vae.config.scaling_factor) != read.vae.config.scaling_factor:
        return f"its VAE's scaling factor {scaling:g} is in no checkpoint"
    for part, module in parts.items():
        if not _has_weights(module):
            continue
        theirs = read.components[part].state_dict()
        for name, weight in module.state_dict().items():
            other = theirs.get(name)
            if other is None or other.is_meta or not weight.float().equal(other.float()):
                return f"it reads another {name} of the {part}"
    return ""
