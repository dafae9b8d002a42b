"""What a job is given by its rule, and how it ends."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

from safetydpo.errors import SafetyDPOError
from safetydpo.running.jobs import job, scale_of
from safetydpo.storage.files import write_text


def test_a_method_that_is_not_tuned_has_scale_1(tmp_path):
    write_text('{"scale": 0.75}\n', tmp_path / "scale.json")
    assert scale_of(SimpleNamespace(input={})) == 1.0
    assert scale_of(SimpleNamespace(input={"scale": tmp_path / "scale.json"})) == 0.75


@pytest.mark.parametrize("text", ["", '{"scale"', "[]", "{}", '{"scale": null}', '{"scale": "high"}', '{"scale": NaN}'])
def test_a_scale_file_that_is_not_whole_is_one_sentence(tmp_path, text):
    (tmp_path / "scale.json").write_text(text)
    with pytest.raises(SafetyDPOError, match=r"scale\.json holds no LoRA scale: delete it and rerun snakemake\.$"):
        scale_of(SimpleNamespace(input={"scale": tmp_path / "scale.json"}))


@pytest.fixture
def rule(tmp_path, monkeypatch):
    """A rule's job, whose settings of the process are taken back."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    handlers = logging.root.handlers[:]
    yield SimpleNamespace(rule="prompts", threads=1, log=[str(tmp_path / "logs/prompts.log")])
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
