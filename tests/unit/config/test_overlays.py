"""The shipped overlays have the published settings."""

import pytest
import yaml
from snakes import ROOT

from safetydpo.config.loading import load_config

DEFAULT = yaml.safe_load((ROOT / "config/config.yaml").read_text())


# SafetyDPO's settings: pairs a step, learning rate after scaling, warm-up, optimizer, clipping, checkpointing, size.
PUBLISHED = {
    "sd15": (16, 1.6e-4, 500, "adamw", 1.0, False, 512),
    "sd21": (16, 1.6e-4, 500, "adamw", 1.0, False, 768),
    "sdxl": (16, 1e-5, 0, "adafactor", None, True, 1024),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_overlays_have_the_published_settings(name):
    overlay = yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())
    # as Snakemake merges them: key by key, lists replaced
    merged = {k: {**DEFAULT.get(k, {}), **v} if isinstance(v, dict) else v for k, v in overlay.items()}
    merged["train"]["preserve"] = {**DEFAULT["train"]["preserve"], **overlay["train"]["preserve"]}
    config = load_config({**DEFAULT, **merged})
    train, batch = config.train, config.train.batch_size * config.train.gradient_accumulation_steps
    rate = train.learning_rate * (batch if train.scale_lr else 1)
    found = (batch, pytest.approx(rate), train.warmup_steps, train.optimizer, train.max_grad_norm)
    assert (*found, train.gradient_checkpointing, config.model.height) == PUBLISHED[name]
    assert (train.steps, train.beta, train.rank, train.alpha, train.caption_dropout) == (2000, 5000, 4, None, 0.2)
    assert (train.loss, train.condition, train.reference, train.flip) == ("dpo", "unsafe", "exact", 0.5)
    assert train.preserve.weight == 0
    assert config.train_of_all_single().learning_rate == train.learning_rate  # not the demo's
    assert train.target_modules == ["to_q", "to_k", "to_v", "to_out.0"]
    assert len(config.categories) == 7
