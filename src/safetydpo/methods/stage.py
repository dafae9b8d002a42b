"""That a model of others can be rendered with, said before anything is rendered or trained."""

import json
from pathlib import Path

from safetydpo.config.baselines import Baselines
from safetydpo.config.model import Model
from safetydpo.methods.external import external_pipeline
from safetydpo.models.pipeline import bad_weight, not_finite
from safetydpo.storage.files import write_text


def check_external(name: str, config: Model, baselines: Baselines, out: Path | str) -> None:
    """Open an external model (or download it, when the hub is in reach) and write what it is.

    Raises SafetyDPOError when it is not to be had, does not fit the model, or has weights that are not finite.
    """
    path = baselines.external(name).path
    pipeline = external_pipeline(config.model_copy(update={"device": "cpu"}), path)  # this job may run on a login node
    if bad_weight(pipeline):
        raise not_finite(pipeline, f"External {name}, {path}, has weights that are not finite")
    facts = {"path": path, "pipeline": type(pipeline).__name__, "unet_parameters": pipeline.unet.num_parameters()}
    write_text(json.dumps(facts, indent=1) + "\n", out)
    print(facts)
