"""That the model can be loaded and trained, said before anything expensive."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.models.families.registry import NOTHING, refusals
from safetydpo.models.index import Index
from safetydpo.models.pipeline import bad_weight, load_pipeline, not_finite
from safetydpo.models.prediction import prediction_of
from safetydpo.models.targets import refuse_targets
from safetydpo.storage.files import write_text


def check_model(
    config: Model, out: Path | str, targets: Iterable[str] = (), asked: Mapping[str, str] = NOTHING
) -> None:
    """Find the model (or download it, when the hub is in reach) and write what it is, before anything expensive.

    targets: modules that the config names to get a LoRA; asked: `Config.asked`. Raises SafetyDPOError when it is not to
    be had, or is of a kind that this workflow cannot train, or cannot do what is asked, or has weights that are not
    finite, or no place for a LoRA on one of the targets or of its family's own.
    """
    if lines := refusals(Index(config).family.kind, asked, config.id):
        raise SafetyDPOError("\n".join(lines))
    pipeline = load_pipeline(config.model_copy(update={"device": "cpu"}))  # this job may run on a login node
    family = pipeline.family
    network, _ = family.network(pipeline), prediction_of(pipeline.scheduler.config, config.id)
    if bad_weight(pipeline):
        raise not_finite(pipeline, f"Model {config.id} has weights that are not finite")
    refuse_targets(network, [*targets, *family.kind.targets], config.id)
    facts = {
        "id": config.id,
        "pipeline": type(pipeline).__name__,
        "family": family.kind.name,
        "prediction_type": "flow" if family.kind.flow else pipeline.scheduler.config.prediction_type,
        f"{family.kind.component}_parameters": network.num_parameters(),
        "latent_channels": family.latent_channels(network.config),
    }
    write_text(json.dumps(facts, indent=1) + "\n", out)
    print(facts)
