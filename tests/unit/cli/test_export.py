"""`safetydpo export` of what cannot be exported, and the order of its words."""

import shutil
import sys

import pytest
from snakes import ROOT

from safetydpo.cli import main


def said(capsys, *args):
    """The sentence that the command ends with."""
    with pytest.raises(SystemExit) as ended:
        main(["export", *map(str, args)])
    assert "Traceback" not in capsys.readouterr().err
    return str(ended.value)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["--method", "sld-max"], "sld-max acts while images are rendered and has no weights to export"),
        (["--method", "esd-u", "--format", "lora"], "esd-u is no LoRA of the run: lora of it needs a rank"),
        (
            ["--method", "merged-co-merge", "--format", "lora", "--rank", "0"],
            "--rank must be a whole number of at least",
        ),
        (["--method", "merged-co-merge"], "config.yaml is missing: rerun snakemake"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, capsys, args, sentence):
    assert sentence in said(capsys, tmp_path / "run", *args, "--to", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_missing_of_a_run_and_a_token_are_said_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(ROOT / "config/config.yaml", run)
    asked = run, "--method", "merged-co-merge", "--to", tmp_path / "out"
    path = run / "merged/co-merge/pytorch_lora_weights.safetensors"
    assert f"{run} is not finished, {path} is missing: `snakemake --cores all {path}`" in said(capsys, *asked)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.delitem(sys.modules, "safetydpo.export.push", raising=False)
    assert "--push needs a token of the hub" in said(capsys, *asked, "--push", "me/mine")
