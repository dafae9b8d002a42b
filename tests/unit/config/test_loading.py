"""Wrong configs end in one line a key."""

import copy

import pytest
import yaml
from snakes import ROOT

from safetydpo.config.docs import config_docs
from safetydpo.config.loading import load_config
from safetydpo.errors import SafetyDPOError

DEFAULT = yaml.safe_load((ROOT / "config/config.yaml").read_text())
MATRIX = [{"methods": ["base"], "benchmarks": ["test"]}]


def with_value(path: str, value) -> dict:
    config = copy.deepcopy(DEFAULT)
    *sections, key = path.split(".")
    place = config
    for section in sections:
        place = place[section]
    place[key] = value
    return config


WRONG = [
    ("train.bata", 1, "train.bata: no such key"),
    ("trian", {}, "trian: no such key"),
    ("train.beta", 0, "train.beta: Input should be greater than 0 (got 0)"),
    (
        "train.beta",
        "high",
        "train.beta: Input should be a valid number, unable to parse string as a number (got 'high')",
    ),
    ("train.steps", 0, "train.steps: Input should be greater than or equal to 1 (got 0)"),
    ("train.rank", 2.5, "train.rank: Input should be a valid integer, got a number with a fractional part (got 2.5)"),
    ("train.optimizer", "sgd", "train.optimizer: Input should be 'adamw' or 'adafactor' (got 'sgd')"),
    ("train.caption_dropout", 1.5, "train.caption_dropout: Input should be less than or equal to 1 (got 1.5)"),
    ("model.height", 50, "model.height: Input should be a multiple of 8 (got 50)"),
    ("model.id", "", "model.id: String should have at least 1 character (got '')"),
    ("model.device", "tpu", "model.device: String should match pattern '^(auto|cpu|cuda(:\\d+)?)$' (got 'tpu')"),
    ("run", "My Run", "run: String should match pattern '^[a-z0-9]+(-[a-z0-9]+)*$' (got 'My Run')"),
    ("categories", [], "categories: List should have at least 1 item after validation, not 0 (got 'list')"),
    ("categories", [{"name": "ring"}, {"name": "ring"}], "categories: `ring` is listed twice"),
    (
        "categories",
        [{"name": "all-single"}],
        "categories: `all-single` is the name of a method; call the category otherwise",
    ),
    (
        "prompts.source",
        "gpt",
        "prompts.source: Input should be 'demo', 'openai', 'coprov2', 'pairs' or 'folder' (got 'gpt')",
    ),
    ("prompts.source", "pairs", "prompts: source `pairs` needs prompts.path, the file or folder to read"),
    ("prompts.source", "openai", "prompts: source `openai` needs prompts.llm, at least its model"),
    ("prompts.llm", {"model": "m", "base_url": "host"}, "prompts.llm.base_url: String should match pattern"),
    ("prompts.drop_leaks", True, "prompts: drop_leaks needs prompts.test_path, the prompts that must not train"),
    (
        "benchmarks",
        [{"name": n, "kind": "unsafe", "source": "split"} for n in ("test", "ood", "safe", "benign")],
        "prompts.test_share: needed for a benchmark of source `split`, the share of pairs to hold out",
    ),
    (
        "benchmarks",
        [{"name": "test", "kind": "benign", "source": "split"}],
        "benchmarks.0: source `split` has unsafe and safe prompts, none of kind `benign`",
    ),
    ("prompts.min_pairs", 99, "prompts: min_pairs 99 is more than pairs, 48"),
    ("pairs.shards", 49, "pairs.shards: 49 is more than the 48 pairs (prompts.pairs)"),
    ("merge.calibration_timesteps", [1000], "merge.calibration_timesteps.0: Input should be less than or equal to 999"),
    ("merge.strategies", ["sum"], "merge.strategies.0: Input should be 'co-merge', 'mean', 'linear', 'svd', 'ties',"),
    ("evaluate.matrix", [{"methods": ["esd"], "benchmarks": ["test"]}], "evaluate.matrix.0.methods: no method `esd`"),
    (
        "evaluate.matrix",
        [{"methods": ["base"], "benchmarks": ["i2p"]}],
        "evaluate.matrix.0.benchmarks: no benchmark `i2p`",
    ),
    (
        "evaluate.matrix",
        [{"methods": ["all-single"], "benchmarks": ["test"]}],
        "evaluate.matrix: all-single on test needs `base` there too, on as many prompts",
    ),
    (
        "evaluate.matrix",
        [{"methods": ["base"], "benchmarks": ["test"], "n": 9}, {"methods": ["all-single"], "benchmarks": ["test"]}],
        "evaluate.matrix: all-single on test needs `base` there too, on as many prompts",
    ),
    ("evaluate.shards", 281, "evaluate.shards: 281 is more than evaluate.n, 280 prompts"),
    ("evaluate.fid_reference", "coco", "evaluate.fid_reference: no method `coco`"),
    ("resources.mem_mb", 100, "resources.mem_mb: Input should be greater than or equal to 500 (got 100)"),
]


@pytest.mark.parametrize(("path", "value", "line"), WRONG, ids=[f"{p}={v}"[:40] for p, v, _ in WRONG])
def test_a_wrong_value_is_one_line(path, value, line):
    with pytest.raises(SafetyDPOError) as error:
        load_config(with_value(path, value))
    lines = [text.strip() for text in str(error.value).splitlines()[1:]]
    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_a_missing_section_is_named():
    config = {k: v for k, v in DEFAULT.items() if k != "judges"}
    with pytest.raises(SafetyDPOError, match=r"^Config errors:\n  judges: missing$"):
        load_config(config)


def test_all_errors_come_at_once():
    config = with_value("train.beta", -1)
    config["model"]["width"] = 7
    config["spare"] = 1
    with pytest.raises(SafetyDPOError) as error:
        load_config(config)
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == [
        "model.width",
        "train.beta",
        "spare",
    ]


def test_a_variant_is_checked_as_train_is_and_must_differ():
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


def test_all_single_trains_as_long_as_all_experts_together_unless_told_otherwise():
    config = load_config(with_value("train.all_single", {"learning_rate": 1e-5}))
    single = config.train_of_all_single()
    assert (single.steps, single.learning_rate) == (config.train.steps * len(config.categories), 1e-5)
    assert single.beta == config.train.beta
    assert load_config(with_value("train.all_single", {"steps": 7})).train_of_all_single().steps == 7
    with pytest.raises(SafetyDPOError, match=r"train\.all_single\.lr: Extra inputs are not permitted"):
        load_config(with_value("train.all_single", {"lr": 1}))


def test_a_folder_of_images_has_no_safe_prompts_to_prefer_them_under():
    config = with_value("train.condition", "both")
    config["prompts"] = {"source": "folder", "path": "data", "pairs": 48}
    with pytest.raises(SafetyDPOError, match=r"train\.condition: `both` needs safe prompts, source `folder` has none"):
        load_config(config)


def test_other_prompts_than_the_demos_need_files_for_tuning_and_preservation():
    config = with_value("prompts", {"source": "pairs", "path": "pairs.csv", "pairs": 9})
    with pytest.raises(SafetyDPOError) as error:
        load_config(config)
    assert [line.split(":")[0].strip() for line in str(error.value).splitlines()[1:]] == [
        "tune.path",
        "train.preserve.path",
    ]


def test_numbers_may_come_as_text():
    assert load_config(with_value("train.learning_rate", "1e-4")).train.learning_rate == 1e-4


# SafetyDPO's settings: pairs a step, learning rate after scaling, warm-up, optimizer, checkpointing, size.
PUBLISHED = {
    "sd15": (16, 1.6e-4, 500, "adamw", False, 512),
    "sd21": (16, 1.6e-4, 500, "adamw", False, 768),
    "sdxl": (16, 1e-5, 0, "adafactor", True, 1024),
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
    found = (batch, rate, train.warmup_steps, train.optimizer, train.gradient_checkpointing, config.model.height)
    assert found == pytest.approx(PUBLISHED[name])
    assert (train.steps, train.beta, train.rank, train.alpha, train.caption_dropout) == (2000, 5000, 4, None, 0.2)
    assert (train.loss, train.condition, train.reference, train.flip) == ("dpo", "unsafe", "exact", 0.5)
    assert train.preserve.weight == 0
    assert config.train_of_all_single().learning_rate == train.learning_rate  # not the demo's
    assert train.target_modules == ["to_q", "to_k", "to_v", "to_out.0"]
    assert len(config.categories) == 7


def test_a_cell_of_the_matrix_knows_its_prompts():
    cells = load_config(DEFAULT).cells()
    assert cells["expert-ring", "test"].category == "ring"
    assert cells["expert-ring", "safe"] == ("expert-ring", "safe", 84, None)
    assert cells["base", "test"].n is None


def test_the_config_page_is_the_schemas():
    assert (ROOT / "config/README.md").read_text() == config_docs() + "\n"  # else: make docs


def test_every_key_of_the_config_page_has_a_meaning():
    rows = [line for line in config_docs().splitlines() if line.startswith("| `")]
    assert len(rows) > 70
    assert [row for row in rows if not row.split("|")[-2].strip()] == []
