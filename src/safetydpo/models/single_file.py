"""Checkpoints of one file in the layout that a model was published in, read by diffusers on the parts of its base."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.single_file_utils import SingleFileComponentError

from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.models.families.ldm import NETWORK
from safetydpo.models.folders import shapes_in
from safetydpo.models.index import UNREADABLE, Index
from safetydpo.models.pipeline import load_pipeline

# What names of a file's tensors begin with -> the parts, by name or class, that diffusers reads from them.
PARTS: dict[str, tuple[str, ...]] = {
    NETWORK: ("unet", "transformer"),
    "first_stage_model.": ("vae",),
    "vae.": ("vae",),
    "cond_stage_model.": ("text_encoder",),
    "conditioner.embedders.0.": ("text_encoder",),
    "conditioner.embedders.1.": ("text_encoder_2",),
    "text_encoders.clip_l.": ("text_encoder",),
    "text_encoders.clip_g.": ("text_encoder_2",),
    "text_encoders.t5xxl.": ("T5EncoderModel",),
}
# Weights by which a transformer's file is known that has its names without NETWORK, as they are published alone too.
BARE = (
    "joint_blocks.0.x_block.attn.qkv.weight",
    "double_blocks.0.img_attn.qkv.weight",
    "layers.0.attention.qkv.weight",
)
UNUSED_NORM = ".norm_final.weight"  # of Z-Image, whose network has no such layer
IGNORED = ("model_ema.",)  # averages of training, beside the weights themselves
# Marks of a model that is trained on another noise than its layout says.
MARKS = {"v_pred": "v_prediction", "edm_vpred.sigma_max": "EDM", "edm_mean": "EDM"}


def is_single_file(path: Path) -> bool:
    """Whether a path is a safetensors file with a network in its original layout."""
    return path.suffix == ".safetensors" and path.is_file() and any(key.startswith(NETWORK) for key in _shapes(path))


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a file's tensors; those of a network alone by the names that they have in a whole checkpoint."""
    shapes = shapes_in(file)
    return {NETWORK + key: shape for key, shape in shapes.items()} if shapes.keys() & set(BARE) else shapes


def load_single_file(config: Model, file: Path) -> Any:
    """The pipeline of `config` with every part that a checkpoint holds read from it; a VAE of `model.vae` stays.

    Raises SafetyDPOError where it holds what diffusers would pass over, lacks weights, or is of another model.
    """
    index, shapes = Index(config), _shapes(file)
    held = _held(shapes, index, file) - ({"vae"} if config.vae else set())
    pipeline = load_pipeline(config)
    _refuse_other(shapes, pipeline, file, config)
    given = {part: value for part, value in pipeline.components.items() if part not in held}
    if "requires_safety_checker" in index.parts:
        given["requires_safety_checker"] = False
    try:
        read: Any = type(pipeline).from_single_file(  # type: ignore[attr-defined]
            str(file), config=str(index.folder or config.id), dtype=getattr(torch, config.dtype), **given
        )
    except (*UNREADABLE, SingleFileComponentError, RuntimeError, KeyError, IndexError) as error:
        raise _unread(file, config, str(error).strip() or type(error).__name__) from None
    for part in sorted(held):
        module = getattr(read, part)
        if lost := next((key for key, value in module.state_dict().items() if value.is_meta), None):
            raise _unread(file, config, f"it lacks {lost} of the {part}")
        setattr(pipeline, part, module.eval().to(pipeline.device))  # diffusers leaves T5's dropout on
    return pipeline


def parts_of(key: str, classes: Mapping[str, str]) -> set[str]:
    """The parts of a pipeline (part -> its class) that a checkpoint's tensor is read into."""
    known = next((names for head, names in PARTS.items() if key.startswith(head)), ())
    return {part for part, kind in classes.items() if {part, kind} & set(known)}


def _unread(file: Path, config: Model, reason: str) -> SafetyDPOError:
    return SafetyDPOError(
        f"The checkpoint {file} cannot be read as one of {config.id} ({reason.splitlines()[0][:200]}): name the base "
        "that it was made from."
    )


def _held(shapes: dict[str, tuple[int, ...]], index: Index, file: Path) -> set[str]:
    """The parts of the pipeline that a file holds; SafetyDPOError where it holds matrices of something else.

    What else has no matrices are numbers of the noise schedule, which is the base's.
    """
    if not hasattr(index.pipeline_class, "from_single_file"):
        raise SafetyDPOError(
            f"{file} is a checkpoint of one file, and diffusers reads none for a {index.pipeline_class.__name__}: save "
            "it as a folder."
        )
    held = set()
    for key, shape in shapes.items():
        parts = parts_of(key, {part: kind for part, (_, kind) in index.used.items()})
        held |= parts
        if not parts and len(shape) > 1 and not key.startswith(IGNORED):
            raise SafetyDPOError(
                f"{file} is a checkpoint with {key}, for which {index.pipeline_class.__name__} has no part that "
                "diffusers reads: save it as a folder."
            )
    return held


def _refuse_other(shapes: dict[str, tuple[int, ...]], pipeline: Any, file: Path, config: Model) -> None:
    """SafetyDPOError where a file's network has more or fewer weights than the base's, or is of another prediction."""
    ours = pipeline.scheduler.config.get("prediction_type", "epsilon")
    for mark, theirs in MARKS.items():
        if mark in shapes and theirs != ours:
            raise SafetyDPOError(
                f"{file} is marked {mark}: it predicts {theirs}, its base {ours}; name a base whose scheduler agrees."
            )
    own = sum(value.numel() for value in pipeline.family.network(pipeline).state_dict().values())
    names = (key for key in shapes if key.startswith(NETWORK) and not key.endswith(UNUSED_NORM))
    if (numbers := sum(math.prod(shapes[key]) for key in names)) != own:
        raise _unread(file, config, f"its network has {numbers:,} weights, that of the base {own:,}")
