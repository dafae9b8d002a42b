"""Wrong configs end in one line a key."""

import pytest
import yaml
from snakes import ROOT

from safetydpo.config.loading import load_config
from safetydpo.errors import SafetyDPOError

DEFAULT = yaml.safe_load((ROOT / "config/config.yaml").read_text())


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
def test_a_wrong_value_is_one_line(with_value, path, value, line):
    with pytest.raises(SafetyDPOError) as error:
        load_config(with_value(path, value))
    lines = [text.strip() for text in str(error.value).splitlines()[1:]]
    assert len(lines) == 1
    assert lines[0].startswith(line)


def test_a_missing_section_is_named():
    config = {k: v for k, v in DEFAULT.items() if k != "judges"}
    with pytest.raises(SafetyDPOError, match=r"^Config errors:\n  judges: missing$"):
        load_config(config)


def test_all_errors_come_at_once(with_value):
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


def test_numbers_may_come_as_text(with_value):
    assert load_config(with_value("train.learning_rate", "1e-4")).train.learning_rate == 1e-4


def lines_of(config) -> list[str]:
    """The lines, a problem each, in which loading ends."""
    with pytest.raises(SafetyDPOError, match=r"^Config errors:\n") as error:
        load_config(config)
    return [line.strip() for line in str(error.value).splitlines()[1:]]


def test_errors_of_fields_and_of_names_come_in_one_list(with_value):
    config = with_value("evaluate.matrix", [{"methods": ["base", "esd"], "benchmarks": ["test", "i2p"]}])
    config["train"] |= {"bata": 1, "beta": -1}
    lines = lines_of(config)
    assert lines[:2] == ["train.beta: Input should be greater than 0 (got -1)", "train.bata: no such key"]
    assert [line.partition(";")[0] for line in lines[2:]] == [
        "evaluate.matrix.0.methods: no method `esd`",
        "evaluate.matrix.0.benchmarks: no benchmark `i2p`",
    ]


def test_a_wrong_value_hides_no_unknown_name_beside_it(with_value):
    matrix = [{"methods": ["base"], "benchmarks": ["test"], "n": 0}, {"methods": ["esd"], "benchmarks": ["test"]}]
    config = with_value("evaluate.matrix", matrix)
    config["evaluate"]["fid_reference"] = "coco"
    matrix[0]["benchmarks"] += ["i2p"]  # of the very entry that has the wrong value
    assert [line.partition(";")[0] for line in lines_of(config)] == [
        "evaluate.matrix.0.n: Input should be greater than or equal to 1 (got 0)",
        "evaluate.matrix.1.methods: no method `esd`",
        "evaluate.matrix.0.benchmarks: no benchmark `i2p`",
        "evaluate.fid_reference: no method `coco`",
    ]


def test_a_name_whose_own_list_is_wrong_is_not_called_unknown(with_value):
    config = with_value("merge.strategies", ["sum"])
    config["evaluate"]["matrix"] = [{"methods": ["base", "merged-mean"], "benchmarks": ["test"]}]
    (line,) = lines_of(config)
    assert line.startswith("merge.strategies.0: Input should be 'co-merge', 'mean'")


def test_sections_that_are_no_sections_are_a_line_each(with_value):
    config = with_value("train", "x")
    config["evaluate"], config["judges"] = {"matrix": 5}, None
    assert lines_of(config) == [
        "train: Input should be a valid dictionary or instance of Train (got 'x')",
        "judges: Input should be a valid dictionary or instance of Judges (got None)",
        "evaluate.n: missing",
        "evaluate.matrix: Input should be a valid list (got 5)",
    ]


def test_an_empty_config_is_one_line():
    with pytest.raises(SafetyDPOError, match=r"^Config errors:\n  config: Input should be a valid dictionary .*None"):
        load_config(None)
