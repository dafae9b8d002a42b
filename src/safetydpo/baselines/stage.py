"""Stage: baselines that change weights of the network. Each writes the weights it changed, and no others."""

from pathlib import Path
from pkgutil import resolve_name

from safetydpo.baselines.erasure import Erasure
from safetydpo.config.baselines import Baselines
from safetydpo.config.model import Model
from safetydpo.methods.opening import refuse
from safetydpo.methods.registry import method_of
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

    retain: file of prompts to preserve, beside those of the config, for a method that does.
    """
    refuse(name, model)
    pipeline = load_pipeline(model.model_copy(update={"dtype": "float32"}))
    retained = list(read_parquet(retain, ["prompt"]).prompt) if retain else []
    eraser = resolve_name(f"safetydpo.baselines.{method_of(name).kind.eraser}")
    changed = eraser(Erasure(name, pipeline, model, config, retained, seed, checkpoints))
    header = made_by("baseline", method=name, model=model.id, config=config.model_dump(), seed=seed)
    write_safetensors(changed, out, header)
    print(f"{name}: {len(changed)} weights changed for {len(config.erased)} concepts")
