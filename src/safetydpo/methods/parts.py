"""Parts of a pipeline that others publish alone: a network (UNet, transformer), a text encoder."""

from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch

from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.models.folders import refuse_pickle
from safetydpo.models.index import UNREADABLE, Index
from safetydpo.models.layer_names import ENCODERS
from safetydpo.models.pipeline import LIBRARIES, load_part
from safetydpo.storage.files import read_json

# What of a text encoder's config must be as the base's: its width is the network's, its vocabulary and its window are
# the tokenizer's, and the network reads the layer that it was trained on.
ENCODER_KEYS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
    "hidden_act",
)
LANGUAGE_HEAD = "lm_head."  # of a language model that encodes text: not called


def part_folders(path: Path, index: Index, model: Model) -> dict[str, Path]:
    """The parts of the pipeline of `model` that lie at a path, and where: the folder itself, or folders of their names.

    Empty where there are none. SafetyDPOError where it holds more of a pipeline, which would be left out.
    """
    if (path / "config.json").is_file():
        return {_part_of(path, index, model): path}
    names = [name for name in (index.family.kind.component, *ENCODERS) if name in index.used]
    folders = {name: path / name for name in names if (path / name / "config.json").is_file()}
    left = [name for name in index.used if name not in names and (path / name).is_dir()]
    if folders and left:
        raise SafetyDPOError(
            f"{path} has {min(folders)}/ and {min(left)}/, but no model_index.json: add that of its pipeline, or leave "
            f"{' and '.join(sorted(folders))} there alone."
        )
    return folders


def _part_of(folder: Path, index: Index, model: Model) -> str:
    """The part that a folder with a config is of, by its class; the network where the config does not say."""
    config, component = read_json(folder / "config.json", own=False), index.family.kind.component
    name = _class_of(config)
    if name is None or name == index.used[component][1]:
        return component
    encoders = {part: _classes(index, model, part) for part in ENCODERS if part in index.used}
    parts = [part for part, classes in encoders.items() if name in classes]
    if len(parts) == 1 or folder.name in parts:
        return folder.name if folder.name in parts else parts[0]
    if parts:
        raise SafetyDPOError(
            f"{folder} has a {name}, which {' and '.join(parts)} of {model.id} are: name the folder after one of them."
        )
    own = ", ".join(index.used[part][1] for part in (component, *encoders))
    raise SafetyDPOError(f"{folder} has a {name}, {model.id} is rendered with a {own}.")


def _class_of(config: dict[str, Any]) -> str | None:
    """The class that a config of diffusers or of transformers is of."""
    return config.get("_class_name") or next(iter(config.get("architectures") or ()), None)


def _classes(index: Index, model: Model, part: str) -> set[str | None]:
    """What the base's part is, and what its own config calls it: some encoders are cut out of a language model."""
    return {index.used[part][1], _class_of(_config(index, part, model.id, part))}


def read_part(part: str, folder: Path, model: Model, index: Index) -> Any:
    """The part of a folder, on the CPU, in the model's precision, to stand in for the base's.

    SafetyDPOError where its weights are not there, not whole, or of another model than the base.
    """
    refuse_pickle(folder, str(folder))
    kind, name = _kind(index, part), index.used[part][1]
    theirs, ours = _config(index, part, str(folder)), _config(index, part, model.id, part)
    if (found := _class_of(theirs) or name) not in {name, _class_of(ours)}:
        raise SafetyDPOError(f"{folder} has a {found}, {model.id} is rendered with a {name}.")
    keys = ENCODER_KEYS if part in ENCODERS else index.family.shape_keys
    keys = (*keys, "projection_dim") if name.endswith("WithProjection") else keys
    if odd := next((key for key in keys if theirs.get(key) != ours.get(key)), None):
        raise SafetyDPOError(
            f"The {part} in {folder} is of another model than {model.id}: {odd} {theirs.get(odd)} against "
            f"{ours.get(odd)}."
        )
    if part not in ENCODERS:
        index.family.check(theirs, model)
    try:
        options: dict[str, Any] = {"dtype": getattr(torch, model.dtype), "use_safetensors": True}
        module, info = load_part(kind, str(folder), "", output_loading_info=True, **options)
    except (*UNREADABLE, RuntimeError) as error:
        raise _unread(part, folder, error) from None
    besides = [key for key in info["unexpected_keys"] if not key.startswith(LANGUAGE_HEAD)]
    for keys, what in ((info["missing_keys"], "lacks"), (besides, "has besides")):
        if keys:
            raise SafetyDPOError(f"The {part} in {folder} is not whole: of a {name}, it {what} {min(keys)}.")
    return module


def _kind(index: Index, part: str) -> Any:
    library, name = index.used[part]
    return getattr(LIBRARIES[library], name)


def _config(index: Index, part: str, name: str, subfolder: str | None = None) -> dict[str, Any]:
    """The config of a part, of a folder or a hub id, with the defaults of its class."""
    kind = _kind(index, part)
    try:
        if part in ENCODERS:
            config = kind.config_class.from_pretrained(name, subfolder=subfolder or "")
            keys = (*ENCODER_KEYS, "projection_dim", "architectures")
            return {key: getattr(config, key, None) for key in keys}
        parameters = signature(kind.__init__).parameters.items()
        defaults = {key: value.default for key, value in parameters if value.default is not Parameter.empty}
        return defaults | kind.load_config(name, subfolder=subfolder)
    except UNREADABLE as error:
        raise _unread(part, name, error) from None


def _unread(part: str, name: Path | str, error: Exception) -> SafetyDPOError:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
    return SafetyDPOError(f"The {part} in {name} cannot be loaded ({reason}).")
