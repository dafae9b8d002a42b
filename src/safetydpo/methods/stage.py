"""That a model of others can be rendered with, said before anything is rendered or trained."""

import json
from pathlib import Path

from safetydpo.config.baselines import Baselines
from safetydpo.config.model import Model
from safetydpo.methods.external import open_external
from safetydpo.models.pipeline import bad_weight, not_finite, unwrapped
from safetydpo.storage.files import write_text


def check_external(name: str, config: Model, baselines: Baselines, out: Path | str) -> None:
    """Open an external model (or download it, when the hub is in reach) and write what it is.

    Raises SafetyDPOError when it is not to be had, does not fit the model, or has weights that are not finite.
    """
    external = baselines.external(name)
    opened = open_external(config.model_copy(update={"device": "cpu"}), external)  # this job may run on a login node
    pipeline = unwrapped(opened)
    if bad_weight(pipeline):
        raise not_finite(pipeline, f"External {name}, {external.path}, has weights that are not finite")
    kind = pipeline.family.kind
    parameters = pipeline.family.network(pipeline).num_parameters()
    facts = {"path": external.path, "pipeline": type(pipeline).__name__, "family": kind.name}
    facts |= {f"{kind.component}_parameters": parameters}
    write_text(json.dumps(facts, indent=1) + "\n", out)
    print(facts)
