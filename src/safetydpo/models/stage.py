"""That the model can be loaded and trained, said before anything expensive."""

import json
from collections.abc import Iterable
from pathlib import Path

from safetydpo.config.model import Model
from safetydpo.models.pipeline import bad_weight, load_pipeline, not_finite
from safetydpo.models.prediction import prediction_of
from safetydpo.models.targets import refuse_targets
from safetydpo.storage.files import write_text


def check_model(config: Model, out: Path | str, targets: Iterable[str] = ()) -> None:
    """Find the model (or download it, when the hub is in reach) and write what it is, before anything expensive.

    Raises SafetyDPOError when it is not to be had, or is of a kind that this workflow cannot train, or has
    weights that are not finite, or no place for a LoRA on one of the `targets`.
    """
    pipeline = load_pipeline(config.model_copy(update={"device": "cpu"}))  # this job may run on a login node
    unet, _ = pipeline.unet, prediction_of(pipeline.scheduler.config, config.id)
    if bad_weight(pipeline):
        raise not_finite(pipeline, f"Model {config.id} has weights that are not finite")
    refuse_targets(unet, targets, config.id)
    facts = {
        "id": config.id,
        "pipeline": type(pipeline).__name__,
        "prediction_type": pipeline.scheduler.config.prediction_type,
        "unet_parameters": unet.num_parameters(),
        "latent_channels": unet.config.in_channels,
    }
    write_text(json.dumps(facts, indent=1) + "\n", out)
    print(facts)
