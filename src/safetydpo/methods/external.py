"""Models that others aligned, known by their files: pipelines, parts of one, LoRAs (docs/brought-models.md)."""

from pathlib import Path
from typing import Any

from safetydpo.config.baselines import External
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import Opening
from safetydpo.methods.parts import part_folders, read_part
from safetydpo.models.adapter_files import adapter_files
from safetydpo.models.adapters import fuse
from safetydpo.models.folders import refuse_pickle, refuse_pickled
from safetydpo.models.index import Index
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.single_file import is_single_file, load_single_file


def external_pipeline(model: Model, path: str) -> Any:
    """The pipeline of `path`: whole (a folder, a hub id, a checkpoint of one file), or parts and LoRAs on `model`.

    Raises SafetyDPOError when it is none of these, or of another architecture than `model`.
    """
    local = Path(path)
    if _is_whole(path):
        return load_pipeline(model.model_copy(update={"id": path}))
    if local.is_file():
        refuse_pickled(local)
    if is_single_file(local):
        return load_single_file(model, local)
    index = Index(model)
    folders, adapters = part_folders(local, index, model), adapter_files(local)
    if not folders and not adapters:
        refuse_pickle(local, path)
        component = index.family.kind.component
        raise SafetyDPOError(
            f"{path} is neither a pipeline (model_index.json), nor a {component} or text encoder (config.json, or "
            f"{component}/, text_encoder/), nor a LoRA (pytorch_lora_weights.safetensors, adapter_model.safetensors, "
            "or a .safetensors file)."
        )
    brought = {part: read_part(part, folder, model, index) for part, folder in folders.items()}
    pipeline = load_pipeline(model)
    for part, module in brought.items():
        setattr(pipeline, part, module.to(pipeline.device))
    if adapters:
        fuse(pipeline, local, 1.0, own=False)
    return pipeline


def _is_whole(path: str) -> bool:
    """Whether it is a pipeline's folder, or no folder or file, so that it must be a hub id."""
    return (Path(path) / "model_index.json").is_file() or not Path(path).exists()


class OwnSettings:
    """A pipeline that is rendered with the steps, guidance and arguments of `model`, whatever it is called with."""

    def __init__(self, pipeline: Any, model: Model) -> None:
        self.pipeline, self.family, self.model = pipeline, pipeline.family, model

    def __call__(
        self, *, prompt: list[str], generator: Any, height: int, width: int, output_type: str, **others: Any
    ) -> Any:
        del others
        return self.pipeline(
            prompt=prompt,
            generator=generator,
            height=height,
            width=width,
            output_type=output_type,
            num_inference_steps=self.model.num_inference_steps,
            **self.family.render_options(self.model),
        )


def settings_of(model: Model, external: External) -> Model:
    """`model` with what the external has of its own.

    A whole pipeline of another class goes without `model.call` and `model.vae`, which are of the model's class.
    """
    own: dict[str, Any] = external.model_dump(exclude={"name", "path"}, exclude_none=True)
    if (model.call or model.vae) and _is_whole(external.path):
        bare = model.model_copy(update={"id": external.path, "call": {}, "vae": None})
        if Index(bare).pipeline_class is not Index(model).pipeline_class:
            own = {"call": {}, "vae": None} | own
    return model.model_copy(update=own)


def open_external(model: Model, external: External) -> Any:
    """The pipeline of an external model, which renders with what settings of its own it has."""
    own = settings_of(model, external)
    pipeline = external_pipeline(own, external.path)
    return pipeline if own == model else OwnSettings(pipeline, own)


def open_pipeline(opening: Opening) -> Any:
    """The pipeline of the external model that the variant names."""
    return open_external(opening.model, opening.baselines.external(opening.variant))
