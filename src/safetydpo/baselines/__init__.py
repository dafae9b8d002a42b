"""Stage: baselines that change UNet weights, ESD and UCE. Each writes the weights it changed, and no others."""

from pathlib import Path

from safetydpo.baselines import esd, uce
from safetydpo.config import Baselines, Model
from safetydpo.files import made_by, write_safetensors
from safetydpo.models import load_pipeline


def erase(name: str, model: Model, config: Baselines, seed: int, checkpoints: Path | str, out: Path | str) -> None:
    """Erase the concepts of the config with the method `name` (esd-u, esd-x, uce); write the changed weights."""
    pipeline = load_pipeline(model.model_copy(update={"dtype": "float32"}))
    if name == "uce":
        changed = uce.erase(pipeline, config.concepts, config.uce)
    else:
        changed = esd.erase(pipeline, name, config.concepts, config.esd, model, seed, checkpoints)
    header = made_by("baseline", method=name, model=model.id, config=config.model_dump(), seed=seed)
    write_safetensors(changed, out, header)
    print(f"{name}: {len(changed)} weights changed for {len(config.concepts)} concepts")
