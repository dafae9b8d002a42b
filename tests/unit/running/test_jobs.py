"""What a job is given by its rule, and how it ends."""

import gc
import logging
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from safetydpo.config.judges import Judges
from safetydpo.config.versions import MACHINE_KEYS
from safetydpo.errors import SafetyDPOError
from safetydpo.running.jobs import importing, job, judges_of, looks_of, scale_of
from safetydpo.storage.files import write_text


@pytest.mark.parametrize("fails", [False, True])
def test_the_collector_rests_while_a_job_imports_and_then_leaves_alone_what_is_there(fails):
    before = gc.get_freeze_count()
    try:
        with suppress(ImportError), importing():
            assert not gc.isenabled()
            kept = [[] for _ in range(1000)]
            if fails:
                raise ImportError
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(kept)
    finally:
        gc.unfreeze()


def test_a_method_that_is_not_tuned_has_scale_1(tmp_path):
    write_text('{"scale": 0.75}\n', tmp_path / "scale.json")
    assert scale_of(SimpleNamespace(input={})) == 1.0
    assert scale_of(SimpleNamespace(input={"scale": tmp_path / "scale.json"})) == 0.75


@pytest.mark.parametrize("text", ["", '{"scale"', "[]", "{}", '{"scale": null}', '{"scale": "high"}', '{"scale": NaN}'])
def test_a_scale_file_that_is_not_whole_is_one_sentence(tmp_path, text):
    (tmp_path / "scale.json").write_text(text)
    with pytest.raises(SafetyDPOError, match=r"scale\.json holds no LoRA scale: delete it and rerun snakemake\.$"):
        scale_of(SimpleNamespace(input={"scale": tmp_path / "scale.json"}))


SERVER = {"model": "see", "base_url": "http://localhost:8000/v1", "temperature": 0.5, "api_key_env": "MINE"}
OTHER = "http://other:8000/v1"
PANEL = [
    {"judge": "q16", "id": "clip", "path": "user/prompts.p"},
    {"judge": "q16", "name": "tuned", "id": "clip", "path": "user/tuned.pt"},
    {"judge": "demo", "path": "user/detector"},
    {"judge": "vlm", "policy": "policy.txt", "server": SERVER | {"retries": 9, "prices": {"input": 1, "output": 2}}},
]
JUDGES = {"panel": PANEL, "verdicts": [{"name": "q16"}, {"name": "vlm"}], "ip": "vlm", "clip_score": "clip"}


def judging(section, panel, copies):
    """A rule's job whose params hold what of a section redoes it, and whose config has a panel."""
    params = SimpleNamespace(judges=section.model_dump(exclude=MACHINE_KEYS["judges"]))
    return SimpleNamespace(params=params, input={"copies": copies}, config={"judges": JUDGES | {"panel": panel}})


def test_judges_are_the_rules_with_the_runs_copies_and_the_configs_rates():
    """The config was changed behind the rule's back: what changes answers stays the rule's, what does not is new."""
    config = Judges(**JUDGES)
    later = [
        *PANEL[:3],
        PANEL[3]
        | {
            "server": {
                "model": "other",
                "temperature": 1,
                "retries": 2,
                "concurrency": 3,
                "base_url": OTHER,
            }
        },
    ]
    copies = ["results/demo/judges/q16.safetensors", "results/demo/judges/tuned.safetensors"]
    for found in (
        looks_of(judging(config.looks(), later, copies)),
        judges_of(judging(config, later, copies)),
    ):
        assert [judge.name for judge in found.panel] == ["q16", "tuned", "demo", "vlm"]
        assert [judge.path for judge in found.panel] == [*copies, "user/detector", None]
        server = found.panel[3].server
        assert server is not None
        assert (server.model, server.temperature) == ("see", 0.5)
        assert (server.retries, server.concurrency, server.base_url) == (2, 3, OTHER)
        assert (server.api_key_env, server.prices) == ("OPENAI_API_KEY", None)  # not named any more: the defaults
    assert judges_of(judging(config, later, copies)).headline.name == "vlm"


def test_judges_that_act_are_a_part_of_the_configs_panel():
    acting = Judges(**JUDGES).to_act()
    found = judges_of(judging(acting, PANEL, ["results/demo/judges/q16.safetensors"]))
    assert [judge.path for judge in found.panel] == ["results/demo/judges/q16.safetensors", "user/detector"]
    assert found.acting.name == "q16"
    alone = judges_of(judging(acting, PANEL, []))  # before the run has copies: the user's file
    assert alone.panel[0].path == "user/prompts.p"


def test_what_redoes_a_job_has_no_rates_or_names_of_keys():
    params = judging(Judges(**JUDGES), PANEL, []).params
    assert "MINE" not in str(params)
    assert "retries" not in str(params)


@pytest.fixture
def rule(tmp_path, monkeypatch):
    """A rule's job, whose settings of the process are taken back."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    handlers = logging.root.handlers[:]
    yield SimpleNamespace(rule="prompts", params={}, threads=1, log=[str(tmp_path / "logs/prompts.log")])
    logging.root.handlers[:] = handlers


def test_an_unexpected_error_stands_in_the_rules_log_with_its_traceback(rule):
    with pytest.raises(ZeroDivisionError), job(rule):
        print("before", 1 / 0)
    log = Path(rule.log[0]).read_text()
    assert "Traceback (most recent call last)" in log
    assert 'print("before", 1 / 0)' in log
    assert log.rstrip().endswith("ZeroDivisionError: division by zero")


def test_an_error_that_a_user_can_mend_is_its_sentence_alone(rule, capfd):
    with pytest.raises(SystemExit) as ended, job(rule):
        raise SafetyDPOError("a.csv has no column `prompt`.")
    assert ended.value.code == 1
    assert Path(rule.log[0]).read_text().splitlines()[1:] == ["a.csv has no column `prompt`."]
    assert capfd.readouterr().err == "\nprompts: a.csv has no column `prompt`.\n\n"


def test_what_the_config_lacks_for_a_rule_ends_its_job(rule, capsys):
    rule.params = {"lacks": "tune.path: needed"}
    with pytest.raises(SystemExit), job(rule):
        raise AssertionError("begun")
    assert capsys.readouterr().err == "\nprompts: tune.path: needed\n\n"
