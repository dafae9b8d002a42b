"""What follows from the parts of a config together: trainings, variants, cells of the matrix."""

import pytest
import yaml
from snakes import ROOT

from safetydpo.config.loading import load_config
from safetydpo.errors import SafetyDPOError

DEFAULT = yaml.safe_load((ROOT / "config/config.yaml").read_text())


def test_a_variant_is_checked_as_train_is_and_must_differ(with_value):
    study = {"name": "loss", "variants": [{"name": "x", "train": {"loss": "hinge", "sleeps": 1}}]}
    with pytest.raises(SafetyDPOError) as error:
        load_config(with_value("ablation", [study]))
    lines = [line.strip() for line in str(error.value).splitlines()[1:]]
    assert lines[0].startswith("ablation loss-x: train.loss: Input should be 'dpo'")
    assert lines[1] == "ablation loss-x: train.sleeps: Extra inputs are not permitted"
    study["variants"] = [{"name": "x"}]
    with pytest.raises(SafetyDPOError, match="variant `x` differs in nothing: give `train` or `pairs`"):
        load_config(with_value("ablation", [study]))
    study["variants"] = [{"name": "x", "train": {"loss": "sft"}}]
    config = load_config(with_value("ablation", [study]))
    assert config.train_of(config.variants()["loss-x"].train) == config.train.model_copy(
        update={"loss": "sft", "all_single": None}
    )
    assert "ablation-loss-x" in config.methods()


def test_targets_are_those_of_every_training(with_value):
    values = with_value("train.target_modules", ["to_q"])
    values["train"]["all_single"] = {"target_modules": ["to_q", "proj_in"]}
    study = {"name": "layers", "variants": [{"name": "x", "train": {"target_modules": ["conv1"]}}]}
    config = load_config(values | {"ablation": [study]})
    assert config.targets() == {"to_q", "proj_in", "conv1"}


def test_all_single_trains_as_long_as_all_experts_together_unless_told_otherwise(with_value):
    config = load_config(with_value("train.all_single", {"learning_rate": 1e-5}))
    single = config.train_of_all_single()
    assert (single.steps, single.learning_rate) == (config.train.steps * len(config.categories), 1e-5)
    assert single.beta == config.train.beta
    assert load_config(with_value("train.all_single", {"steps": 7})).train_of_all_single().steps == 7
    nested = load_config(with_value("train.all_single", {"preserve": {"weight": 5}}))  # key by key, as an overlay
    assert nested.train_of_all_single().preserve == nested.train.preserve.model_copy(update={"weight": 5})
    with pytest.raises(SafetyDPOError, match=r"train\.all_single\.preserve\.wait: Extra inputs are not permitted"):
        load_config(with_value("train.all_single", {"preserve": {"wait": 1}}))
    for other in ({"path": "mine.csv"}, {"prompts": 7}):
        with pytest.raises(
            SafetyDPOError, match=r"train\.all_single\.preserve: `path` and `prompts` are those of train"
        ):
            load_config(with_value("train.all_single", {"preserve": other}))
    with pytest.raises(SafetyDPOError, match=r"train\.all_single\.lr: Extra inputs are not permitted"):
        load_config(with_value("train.all_single", {"lr": 1}))


def test_a_cell_of_the_matrix_knows_its_prompts():
    cells = load_config(DEFAULT).cells()
    assert cells["expert-ring", "test"].category == "ring"
    assert cells["expert-ring", "safe"] == ("expert-ring", "safe", 84, None)
    assert cells["base", "test"].n is None


def test_a_variant_that_the_matrix_has_not_sees_as_many_prompts_as_base(with_value):
    config = load_config(with_value("evaluate.matrix", [{"methods": ["base"], "benchmarks": ["test"], "n": 9}]))
    assert config.cell("ablation-loss-sdpo", "test") == ("ablation-loss-sdpo", "test", 9, None)
    assert config.cell("ablation-loss-sdpo", "safe").n is None


# method of the matrix beside base -> whether pairs, experts and merges are wanted for it
TRAINED = {
    **dict.fromkeys(["base-reseed", "sld-max", "negative-prompt", "esd-u", "esd-x", "uce", "external-x"], False),
    **dict.fromkeys(["experts", "expert-ring", "all-single", "merged-mean", "ablation-loss-sft"], True),
}


@pytest.mark.parametrize("method", TRAINED)
def test_a_run_trains_where_a_method_is_made_of_pairs(with_value, method):
    config = with_value("evaluate.matrix", [{"methods": ["base", method], "benchmarks": ["test"]}])
    config["baselines"]["externals"] = [{"name": "x", "path": "x"}]
    assert load_config(config).trains == TRAINED[method]
