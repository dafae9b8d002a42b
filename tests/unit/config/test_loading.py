"""Wrong configs end in one line a key."""

from pathlib import Path

import pytest
import yaml
from snakes import ROOT

from safetydpo.config.loading import load_config, read_config, read_yaml, refuse_repeated_keys
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
    ("prompts.pairs", 10**12, "prompts.pairs: Input should be less than or equal to 1000000 (got 1000000000000)"),
    ("evaluate.bootstrap", 10**9, "evaluate.bootstrap: Input should be less than or equal to 100000 (got 1000000000)"),
    ("evaluate.shards", 10**6, "evaluate.shards: Input should be less than or equal to 10000 (got 1000000)"),
    ("attacks.rounds", 10**5, "attacks.rounds: Input should be less than or equal to 10000 (got 100000)"),
    ("train.rank", 10**6, "train.rank: Input should be less than or equal to 10000 (got 1000000)"),
    ("train.steps", 150_000, "train.all_single.steps: Input should be less than or equal to 1000000"),
    ("train.beta", float("inf"), "train.beta: Input should be a finite number (got inf)"),
    ("train.learning_rate", float("nan"), "train.learning_rate: Input should be a finite number (got nan)"),
    ("results", "runs {a}", "results: Snakemake reads { and } as a wildcard: call the folder otherwise"),
    ("results", "", "results: String should have at least 1 character (got '')"),
    ("tune.path", "a.csv\n", "tune.path: a path has no line breaks or other control characters (got 'a.csv\\n')"),
    ("judges.clip_score", "~no-such-user/clip", "judges.clip_score: no home folder is known for `~no-such-user`"),
    ("model.id", "", "model.id: String should have at least 1 character (got '')"),
    ("model.device", "tpu", "model.device: String should match pattern '^(auto|cpu|cuda(:\\d+)?)$' (got 'tpu')"),
    ("run", "My Run", "run: String should match pattern '^[a-z0-9]+(-[a-z0-9]+)*$' (got 'My Run')"),
    ("categories", [{"name": "ring"}, {"name": "ring"}], "categories: `ring` is listed twice"),
    ("categories", [{"name": "all"}], "categories: `all` stands for all of them together in every table"),
    ("merge.strategies", ["mean", "co-merge", "mean"], "merge.strategies: `mean` is listed twice"),
    ("tune.scales", [1, 2, 1.0], "tune.scales: `1.0` is listed twice"),
    ("baselines.externals", [{"name": "a", "path": p} for p in "xy"], "baselines.externals: `a` is listed twice"),
    (
        "prompts.source",
        "gpt",
        "prompts.source: Input should be 'demo', 'openai', 'coprov2', 'pairs' or 'folder' (got 'gpt')",
    ),
    ("prompts.source", "pairs", "prompts: source `pairs` needs prompts.path, the file or folder to read"),
    ("prompts.source", "openai", "prompts: source `openai` needs prompts.llm, at least its model"),
    ("prompts.llm", {"model": "m", "extra": {"api_key": "hush"}}, "prompts.llm: `extra.api_key` holds a secret"),
    ("prompts.llm", {"model": "m", "base_url": "host"}, "prompts.llm: `base_url` is no address such as"),
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
    ("merge.strategies", ["sum"], "merge.strategies.0: Input should be 'co-merge', 'fusion', 'mean', 'linear', 'svd',"),
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
    (
        "evaluate.matrix",
        [{"methods": ["base"], "benchmarks": ["test"]}, {"methods": ["base"], "benchmarks": ["test"], "n": 9}],
        "evaluate.matrix: base on test is there twice, with other prompts",
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
    assert "hush" not in lines[0]


@pytest.mark.parametrize("name", ["all-single", "merged", "esd-u", "uce"])
def test_a_category_whose_files_would_be_a_methods_is_refused(with_value, name):
    (line,) = lines_of(with_value("categories", [{"name": name}]))
    assert line == f"categories: `{name}` is the name of a method; call the category otherwise"


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


def test_values_may_come_as_the_text_that_stands_in_braces_on_the_command_line(with_value):
    config = with_value("train.alpha", "null")
    config["tune"] |= {"path": "null", "scales": ["0.5", "1"], "max_ip": "1e-2"}
    config["report"]["blur"] = "false"
    config["prompts"]["llm"] = "null"
    loaded = load_config(config)
    assert (loaded.train.alpha, loaded.tune.path, loaded.prompts.llm) == (None, None, None)
    assert (loaded.tune.scales, loaded.tune.max_ip, loaded.report.blur) == ([0.5, 1.0], 0.01, False)


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
    assert line.startswith("merge.strategies.0: Input should be 'co-merge', 'fusion'")


def test_sections_that_are_no_sections_are_a_line_each(with_value):
    config = with_value("train", "x")
    config["evaluate"], config["judges"] = {"matrix": 5}, None
    assert lines_of(config) == [
        "train: Input should be a valid dictionary or instance of Train (got 'x')",
        "judges: Input should be a valid dictionary or instance of Judges (got None)",
        "evaluate.n: missing",
        "evaluate.matrix: Input should be a valid list (got 5)",
    ]


def test_a_path_at_home_is_written_in_full(with_value, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    config = with_value("results", "~/runs/")
    config["model"]["id"], config["judges"]["panel"][0]["path"] = "~/models/sd", "~/q16/prompts.p"
    config["baselines"]["externals"] = [{"name": "a", "path": "~/lora"}]
    loaded = load_config(config)
    assert loaded.folder == "/home/somebody/runs/demo"
    assert (loaded.model.id, loaded.judges.judge("q16").path) == (
        "/home/somebody/models/sd",
        "/home/somebody/q16/prompts.p",
    )
    assert loaded.baselines.external("a").path == "/home/somebody/lora"


@pytest.mark.parametrize("results", ["results", "results/", "./results", "results/./", "a/../results"])
def test_one_folder_has_one_name(with_value, results):
    assert load_config(with_value("results", results)).folder == "results/demo"
    assert load_config(with_value("results", ".")).folder == "demo"


@pytest.mark.parametrize("text", ["", "run: demo", "run: {", "- a", "run: a\nrun: b"])
def test_a_resolved_config_that_is_not_whole_is_one_sentence(tmp_path, text):
    with pytest.raises(SafetyDPOError, match=r"^config\.yaml is missing: rerun snakemake"):
        read_config(Path("config.yaml"))
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(
        SafetyDPOError, match=r"config\.yaml is no whole config of a run: delete it and rerun snakemake"
    ):
        read_config(tmp_path / "config.yaml")


def test_an_empty_config_is_one_line():
    with pytest.raises(SafetyDPOError, match=r"^Config errors:\n  config: Input should be a valid dictionary .*None"):
        load_config(None)


TWICE = """\
run: a
train: {steps: 4}
ablation:
  - name: x
    variants: [{name: y, pairs: 1, pairs: 2}]
"train": {beta: 1}
"""


def test_a_key_given_twice_is_said_with_both_lines(tmp_path):
    (tmp_path / "mine.yaml").write_text(TWICE)
    for read in (read_yaml, lambda path: refuse_repeated_keys([path])):
        with pytest.raises(SafetyDPOError) as error:
            read(tmp_path / "mine.yaml")
        head, *lines = str(error.value).splitlines()
        assert head == f"{tmp_path}/mine.yaml gives a key twice, of which the last alone would count:"
        assert [line.strip() for line in lines] == [
            "line 5: ablation.0.variants.0.pairs, first given in line 5; put both into one",
            "line 6: train, first given in line 2; put both into one",
        ]


def test_keys_of_a_name_in_several_places_are_no_repetition(tmp_path):
    text = "a: &a {x: 1}\nb: {<<: *a, x: 2}\nc: [{x: 1}, {x: 1}, *a]\n1: p\n'1': q\n"
    (tmp_path / "mine.yaml").write_text(text)
    assert read_yaml(tmp_path / "mine.yaml")["b"] == {"x": 2}
    (tmp_path / "mine.json").write_text('{"a": {"x": 1},\n\t"b": {"x": 1}}')
    (tmp_path / "empty.yaml").write_text("")
    files = [tmp_path / "mine.yaml", tmp_path / "mine.json", tmp_path / "empty.yaml"]
    refuse_repeated_keys([*files, *(ROOT / "config").glob("**/*.yaml")])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a: {b: 1", "is not YAML (line 1: expected ',' or '}', but got '<stream end>')"),
        (b"a:\n\tb: 1", "is not YAML (line 2: found character '\\t' that cannot start any token)"),
        (b"a: caf\xe9", "is not YAML (byte 6 is not UTF-8)"),
    ],
)
def test_what_is_no_yaml_is_said_with_its_place(tmp_path, data, reason):
    (tmp_path / "mine.yaml").write_bytes(data)
    with pytest.raises(SafetyDPOError) as error:
        read_yaml(tmp_path / "mine.yaml")
    assert str(error.value).endswith(f"mine.yaml {reason}.")
