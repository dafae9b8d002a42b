"""The shipped overlays have the published settings."""

import copy

import pytest
import yaml
from snakemake.utils import update_config
from snakes import ROOT

from safetydpo.config.loading import load_config
from safetydpo.models.families.registry import FAMILIES, refusals

DEFAULT = yaml.safe_load((ROOT / "config/config.yaml").read_text())


# SafetyDPO's settings: pairs a step, learning rate after scaling, warm-up, optimizer, clipping, checkpointing, size.
PUBLISHED = {
    "sd15": (16, 1.6e-4, 500, "adamw", 1.0, False, 512),
    "sd21": (16, 1.6e-4, 500, "adamw", 1.0, False, 768),
    "sdxl": (16, 1e-5, 0, "adafactor", None, True, 1024),
}


# Family, image size, learning rate, beta, guidance (w of uncond + w (text - uncond), or embedded), steps.
OF_TODAY = {
    "sd35": ("sd3", 512, 3e-4, 100, 4.5, 40),
    "flux": ("flux", 512, 1e-4, 2000, 3.5, 28),
    "zimage": ("z-image", 512, 1e-4, 100, 4 + 1, 28),
}


def loaded(*names):
    """The config of overlays, as Snakemake merges them: key by key, lists replaced."""
    values = copy.deepcopy(DEFAULT)
    for name in names:
        update_config(values, yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()))
    return load_config(values)


def kind_named(name):
    return next(kind for kind in FAMILIES if kind.name == name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_overlays_have_the_published_settings(name):
    config = loaded(name)
    train, batch = config.train, config.train.batch_size * config.train.gradient_accumulation_steps
    rate = train.learning_rate * (batch if train.scale_lr else 1)
    found = (batch, pytest.approx(rate), train.warmup_steps, train.optimizer, train.max_grad_norm)
    assert (*found, train.gradient_checkpointing, config.model.height) == PUBLISHED[name]
    assert (train.steps, train.beta, train.rank, train.alpha, train.caption_dropout) == (2000, 5000, 4, None, 0.2)
    assert (train.loss, train.condition, train.reference, train.flip) == ("dpo", "unsafe", "exact", 0.5)
    assert train.preserve.weight == 0
    assert config.train_of_all_single().learning_rate == train.learning_rate  # not the demo's
    assert train.target_modules is None  # of the family
    assert kind_named("unet").targets == ("to_q", "to_k", "to_v", "to_out.0")
    assert len(config.categories) == 7


@pytest.mark.parametrize("name", OF_TODAY)
def test_overlays_of_todays_models_train_a_flow_as_published_and_ask_for_what_there_is(name):
    family, *settings = OF_TODAY[name]
    config = loaded(name)
    train, model, kind = config.train, config.model, kind_named(family)
    assert [model.height, train.learning_rate, train.beta, model.guidance_scale, model.num_inference_steps] == settings
    assert (train.rank, train.alpha, train.timestep_sampling, train.noise) == (32, 64, "logit-normal", "fresh")
    assert (train.mixed_precision, model.dtype, train.gradient_checkpointing) == ("bf16", "bfloat16", True)
    assert (train.batch_size * train.gradient_accumulation_steps, train.steps, train.preserve.weight) == (16, 2000, 0)
    assert config.train_of_all_single().learning_rate == train.learning_rate  # not the demo's
    assert refusals(kind, config.asked(), model.id) == []
    assert len(config.categories) == 7


def test_the_flow_demo_is_the_demo_with_another_model():
    flow, demo = loaded("demo-flow"), load_config(DEFAULT)
    assert flow.run == "demo-flow"
    assert flow.model.id == "resources/demo-flow/t2i"
    assert refusals(kind_named("sd3"), flow.asked(), flow.model.id) == []
    assert refusals(kind_named("sd3"), demo.asked(), "x")  # which has UCE
    assert [flow.prompts, flow.benchmarks, flow.judges] == [demo.prompts, demo.benchmarks, demo.judges]


@pytest.mark.parametrize("name", ["config", *PUBLISHED, *OF_TODAY])
def test_an_audit_of_any_model_is_its_base_on_all_benchmarks_and_nothing_else_changes(name):
    audit, training = loaded(name, "audit"), loaded(name)
    assert (audit.trains, training.trains) == (False, True)
    assert list(audit.cells()) == [("base", benchmark.name) for benchmark in training.benchmarks]
    assert [audit.model, audit.benchmarks, audit.judges.verdicts, audit.blurs] == [
        training.model,
        training.benchmarks,
        training.judges.verdicts,
        training.blurs,
    ]
    assert (audit.evaluate.n, audit.attack_names) == (280, [])
