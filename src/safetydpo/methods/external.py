"""Models that others aligned: a LoRA, a network (UNet, transformer) or a whole pipeline, known by the files there."""

from pathlib import Path
from typing import Any

from safetydpo.config.baselines import External
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.methods.opening import Opening
from safetydpo.models.folders import refuse_pickle
from safetydpo.models.index import UNREADABLE, Index
from safetydpo.models.pipeline import load_part, load_pipeline


def external_pipeline(model: Model, path: str) -> Any:
    """The pipeline of `path`: a folder with model_index.json or a hub id, a network's folder, a LoRA folder or file.

    A folder with `unet/` or `transformer/` alone is a network's too: the published inference command takes such.
    Raises SafetyDPOError when it is none of these, or of another architecture than `model`.
    """
    local = Path(path)
    if _is_whole(path):
        return load_pipeline(model.model_copy(update={"id": path}))
    if local.is_file() or (local / "pytorch_lora_weights.safetensors").is_file():
        return load_pipeline(model, local, own_lora=False)
    kind = Index(model).family.kind
    folder = local / kind.component if (local / kind.component / "config.json").is_file() else local
    if not (folder / "config.json").is_file():
        raise SafetyDPOError(
            f"{path} is neither a pipeline (model_index.json), nor a {kind.component} (config.json, or "
            f"{kind.component}/), nor a LoRA (pytorch_lora_weights.safetensors, or a .safetensors file)."
        )
    refuse_pickle(folder, path)
    pipeline = load_pipeline(model)
    setattr(pipeline, kind.component, _network(pipeline, folder, model))
    return pipeline


def _is_whole(path: str) -> bool:
    """Whether it is a pipeline's folder, or no folder or file, so that it must be a hub id."""
    return (Path(path) / "model_index.json").is_file() or not Path(path).exists()


def _network(pipeline: Any, folder: Path, model: Model) -> Any:
    """The network of a folder, to stand in for the pipeline's; SafetyDPOError where it is of another model."""
    family, own = pipeline.family, pipeline.family.network(pipeline)
    component, kind = family.kind.component, type(own)
    try:
        config: Any = kind.load_config(str(folder))
        if (name := config.get("_class_name", kind.__name__)) != kind.__name__:
            raise SafetyDPOError(f"{folder} has a {name}, {model.id} is rendered with a {kind.__name__}.")
        network = load_part(kind, str(folder), use_safetensors=True, dtype=own.dtype)
    except UNREADABLE as error:
        raise SafetyDPOError(
            f"The {component} in {folder} cannot be loaded ({str(error).splitlines()[0][:200]})."
        ) from None
    if key := next((key for key in family.shape_keys if network.config[key] != own.config[key]), None):
        raise SafetyDPOError(
            f"The {component} in {folder} is of another model than {model.id}: {key} {network.config[key]} against "
            f"{own.config[key]}."
        )
    family.check(network.config, model)
    return network.to(own.device)


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
