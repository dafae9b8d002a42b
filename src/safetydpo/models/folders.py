"""What lies in the folder of a model: where it is, which of its files are read."""

import re
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

from safetydpo.errors import SafetyDPOError

PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def folder_of(name: str) -> Path | None:
    """A local folder, or what the hub's cache has of a hub id; None where neither is here.

    Raises SafetyDPOError where the name is neither a folder nor can be a hub id.
    """
    if Path(name).is_dir():
        return Path(name)
    if Path(name).is_file():
        raise SafetyDPOError(
            f"{name} is one file, not the folder of a diffusers pipeline, which save_pretrained writes."
        )
    try:
        if name.endswith((".safetensors", *PICKLES)):
            raise HFValidationError
        cached = try_to_load_from_cache(name, "model_index.json")
    except HFValidationError:
        raise SafetyDPOError(f"There is no {name}, neither a folder nor a file: correct the path.") from None
    return Path(cached).parent if isinstance(cached, str) else None


def not_loaded(name: str, error: Exception) -> SafetyDPOError:
    """The error for a model that the libraries cannot load, with their reason."""
    reason = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
    if Path(name).is_dir():
        todo = "Its folder must be whole, as save_pretrained writes it, with safetensors weights"
    else:
        todo = f"Download it where there is a network (`hf download {name}`), or name a local folder"
    return SafetyDPOError(f"Model {name} cannot be loaded ({reason}). {todo}.")


def variant_of(part: Path) -> str | None:
    """The variant whose weights a part's folder has where it lacks plain ones, fp16 before others; None else.

    Names are <weights>.<variant>.safetensors, and of a shard <weights>.<variant>-00001-of-00002.safetensors or
    <weights>-00001-of-00002.<variant>.safetensors.
    """
    names = [path.name.removesuffix(".safetensors").split(".") for path in part.glob("[!.]*.safetensors")]
    variants = {re.sub(r"-\d+-of-\d+$", "", name[1]) for name in names if len(name) > 1}
    plain = any(len(name) == 1 for name in names)
    return None if plain or not variants else min(variants, key=lambda variant: (variant != "fp16", variant))


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a user's safetensors file, by its header; SafetyDPOError where it is none."""
    refuse_pickled(file)
    try:
        with safe_open(file, framework="pt") as opened:
            return {key: tuple(opened.get_slice(key).get_shape()) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise SafetyDPOError(f"{file} is not a whole safetensors file ({reason}): replace it by a whole one.") from None


def refuse_pickled(file: Path) -> None:
    """SafetyDPOError where a file is a pickle by its name."""
    if file.suffix in PICKLES:
        raise SafetyDPOError(f"{file} is a pickle, which can run code when it is read: only safetensors are.")


def refuse_pickle(part: Path, model: str) -> None:
    """SafetyDPOError where the folder of a part of a model has pickled weights and no others."""
    names = sorted(path.name for path in part.glob("[!.]*"))
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles and not any(name.endswith(".safetensors") for name in names):
        raise SafetyDPOError(
            f"{part / pickles[0]} is a pickle, which can run code when it is read: only safetensors are. "
            "If you trust the file, convert it: in Python, "
            f'DiffusionPipeline.from_pretrained("{model}").save_pretrained("NEW_FOLDER"), then set model.id.'
        )
