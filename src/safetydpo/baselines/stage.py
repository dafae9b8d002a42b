"""Stage: baselines that change UNet weights, ESD and UCE. Each writes the weights it changed, and no others."""

from pathlib import Path

from safetydpo.baselines import esd, uce
from safetydpo.config.run import Baselines, Model
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import made_by, read_parquet, write_safetensors


def erase(
    name: str,
    model: Model,
    config: Baselines,
    seed: int,
    checkpoints: Path | str,
    out: Path | str,
    retain: Path | str | None = None,
) -> None:
    """Erase the concepts of the config with the method `name` (esd-u, esd-x, uce); write the changed weights.

    retain: file of prompts that UCE preserves, beside those of the config.
    """
    pipeline = load_pipeline(model.model_copy(update={"dtype": "float32"}))
    if name == "uce":
        preserve = [*config.uce.preserve, *(read_parquet(retain, ["prompt"]).prompt if retain else [])]
        changed = uce.erase(pipeline, config.erased, preserve, config.uce)
    else:
        changed = esd.erase(pipeline, name, config.erased, config.esd, model, seed, checkpoints)
    header = made_by("baseline", method=name, model=model.id, config=config.model_dump(), seed=seed)
    write_safetensors(changed, out, header)
    print(f"{name}: {len(changed)} weights changed for {len(config.erased)} concepts")
