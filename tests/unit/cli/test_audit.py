"""`safetydpo audit`: the config that it writes, the jobs that follow, and what it refuses before anything starts."""

import json
import re
import subprocess
import sys

import pytest
import yaml
from snakes import ROOT

from safetydpo.cli import audit, main


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """Arguments -> the config files that Snakemake is started with, and the values that were written; nothing runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resources").symlink_to(ROOT / "resources")
    (tmp_path / "loud.csv").write_text("prompt,category\na cat,ring\n")
    (tmp_path / "calm.csv").write_text("caption\na dog\n")
    (tmp_path / "words.txt").write_text("cat\n")
    started = []
    monkeypatch.setattr(audit, "_ran", lambda command: started.append(command) or 0)

    def run(*args):
        main(["audit", *map(str, args), "--dry-run"])
        command = started.pop()
        files = command[command.index("--configfile") + 1 : command.index("--dry-run")]
        return [file.removeprefix(f"{ROOT}/config/") for file in files], yaml.safe_load(open(files[-1]))

    return run


def model_folder(path, component, network, **config):
    """A folder that says of which kind its model is, and holds no weights."""
    (path / component).mkdir(parents=True)
    (path / "model_index.json").write_text(json.dumps({component: ["diffusers", network]}))
    (path / component / "config.json").write_text(json.dumps({"_class_name": network, **config}))
    return path


def test_a_model_by_itself_is_base(ran):
    files, values = ran("resources/demo/t2i")
    assert files == ["config.yaml", "audit.yaml", "results/audit-t2i/audit.yaml"]
    assert values == {
        "run": "audit-t2i",
        "results": "results",
        "model": {"id": "resources/demo/t2i"},
        "evaluate": {"matrix": [{"methods": ["base"], "benchmarks": ["all"]}]},
        "attacks": {"run": [], "methods": ["base"]},
    }


def test_beside_a_base_it_is_an_external_on_the_files_that_are_named(ran, tmp_path):
    (tmp_path / "My LoRA.safetensors").write_bytes(b"")
    asked = ["My LoRA.safetensors", "--base", "resources/demo/t2i", "--prompts", "loud.csv", "--harmless", "calm.csv"]
    files, values = ran(*asked, "--n", 9, "--attacks", "random-tokens", "--forbidden", "words.txt", "--results", "out")
    assert files == ["config.yaml", "audit.yaml", "out/audit-my-lora/audit.yaml"]
    assert values == {
        "run": "audit-my-lora",
        "results": "out",
        "model": {"id": "resources/demo/t2i"},
        "baselines": {"externals": [{"name": "my-lora", "path": "My LoRA.safetensors"}]},
        "benchmarks": [
            {"name": "loud", "kind": "unsafe", "path": "loud.csv"},
            {"name": "calm", "kind": "safe", "path": "calm.csv"},
        ],
        "categories": [],
        "evaluate": {"matrix": [{"methods": ["base", "external-my-lora"], "benchmarks": ["all"]}], "n": 9},
        "attacks": {
            "run": ["random-tokens"],
            "methods": ["base", "external-my-lora"],
            "forbidden_path": "words.txt",
            "forbidden": [],
        },
    }


def test_attacks_on_the_demo_have_its_budgets(ran):
    assert ran("resources/demo/t2i", "--attacks", "sneaky-prompt")[0][:3] == [
        "config.yaml",
        "attacks.yaml",
        "audit.yaml",
    ]


def test_files_that_would_be_called_alike_get_a_number(ran, tmp_path):
    for name in ("a/all.csv", "b/x y.csv", "c/x-y.csv"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("prompt\na cat\n")
    _, values = ran("resources/demo/t2i", "--prompts", "a/all.csv", "b/x y.csv", "--harmless", "c/x-y.csv")
    assert [b["name"] for b in values["benchmarks"]] == ["all-1", "x-y", "x-y-2"]


@pytest.mark.parametrize(
    ("component", "network", "config", "overlay"),
    [
        ("unet", "UNet2DConditionModel", {"cross_attention_dim": 768}, "sd15.yaml"),
        ("unet", "UNet2DConditionModel", {"cross_attention_dim": [1024, 1024]}, "sd21.yaml"),
        ("unet", "UNet2DConditionModel", {"cross_attention_dim": 2048}, "sdxl.yaml"),
        ("unet", "UNet2DConditionModel", {"cross_attention_dim": 96}, "config.yaml"),
        ("transformer", "SD3Transformer2DModel", {"joint_attention_dim": 192}, "demo-flow.yaml"),
        ("transformer", "SD3Transformer2DModel", {"joint_attention_dim": 4096}, "sd35.yaml"),
        ("transformer", "FluxTransformer2DModel", {"joint_attention_dim": 4096}, "flux.yaml"),
        ("transformer", "ZImageTransformer2DModel", {"cap_feat_dim": 2560}, "zimage.yaml"),
    ],
)
def test_how_a_model_is_rendered_and_judged_follows_from_its_kind(ran, tmp_path, component, network, config, overlay):
    files, _ = ran(model_folder(tmp_path / "m", component, network, **config))
    assert files[:-1] == [overlay, "audit.yaml"]
    assert ran("m", "--config", ROOT / "config/sdxl.yaml", "--run", "x")[0] == [
        "sdxl.yaml", "audit.yaml", "results/x/audit.yaml",
    ]  # fmt: skip


def test_a_hub_id_that_a_config_names_need_not_be_here(ran):
    assert ran("stabilityai/stable-diffusion-xl-base-1.0")[0][0] == "sdxl.yaml"


def said(capsys, *args):
    """The sentence that the command ends with."""
    with pytest.raises(SystemExit) as ended:
        main(["audit", *map(str, args)])
    return f"{ended.value.code}{capsys.readouterr().err}"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["nothing"], "the model nothing is no pipeline (a folder with model_index.json): a LoRA, a part of one or"),
        (["lora.safetensors"], "checkpoint of one file is audited as `safetydpo audit MODEL --base PIPELINE`"),
        (["x", "--base", "nothing"], "--base nothing is no pipeline"),
        (["me/never-seen"], "Of which kind me/never-seen is cannot be seen here: if it is a hub id, `hf download` it"),
        (["odd"], "say how it is rendered and who judges by --config"),
        (
            ["resources/demo/t2i", "--prompts", "loud.csv", "bare.csv"],
            "bare.csv has no column `prompt`, nor another of",
        ),
        (["resources/demo/t2i", "--harmless", "nowhere.csv"], "nowhere.csv does not exist"),
        (["resources/demo/t2i", "--prompts", "blank.csv"], "blank.csv is not a readable csv (it is empty)"),
        (["resources/demo/t2i", "--attacks", "shouting"], "invalid choice: 'shouting' (choose from"),
        (["resources/demo/t2i", "--forbidden", "nowhere.txt"], "--forbidden nowhere.txt is no file"),
        (["resources/demo/t2i", "--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["resources/demo/t2i", "--run", "demo"], "results/demo is a run, and no audit: choose another name by --run"),
        (["resources/demo/t2i", "--n", "0"], "--n must be a whole number of at least 1, not '0'"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_starts(ran, tmp_path, capsys, args, sentence):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "lora.safetensors").write_bytes(b"")
    (tmp_path / "bare.csv").write_text("picture,words\n1.png,x\n")
    (tmp_path / "blank.csv").write_text("")
    model_folder(tmp_path / "odd", "unet", "UNet2DConditionModel", cross_attention_dim=5)
    (tmp_path / "results/demo").mkdir(parents=True)
    (tmp_path / "results/demo/config.yaml").write_text("run: demo\n")
    assert sentence in said(capsys, *args)
    assert not list((tmp_path / "results").rglob("audit.yaml"))


def test_a_library_without_its_workflow_says_where_to_get_it(ran, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(audit, "ROOT", tmp_path)
    assert f"{tmp_path} has no Snakefile: install from a clone" in said(capsys, "resources/demo/t2i")


def test_a_run_that_fails_says_so_and_ends_with_its_status(ran, capsys, monkeypatch):
    monkeypatch.setattr(audit, "_ran", lambda command: 1)
    assert "The audit is not finished (status 1; why stands above): the same command goes on" in said(
        capsys, "resources/demo/t2i"
    )


@pytest.mark.usefixtures("ran")  # its folder
def test_the_dry_run_of_the_real_workflow_trains_nothing(tmp_path):
    code = "from safetydpo.cli import main; main()"
    command = [sys.executable, "-c", code, "audit", "resources/demo/t2i/unet", "--base", "resources/demo/t2i"]
    command += ["--prompts", "loud.csv", "-n", "--cores", "1", "--run", "x"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    table = re.findall(r"^(\w+) +(\d+)$", (done.stdout + done.stderr).split("Job stats:")[-1], re.MULTILINE)
    assert {name: int(count) for name, count in table} == {
        "all": 1, "resolved_config": 1, "check_model": 1, "check_judges": 1, "copy_judge": 1, "check_verdicts": 1,
        "check_external": 1, "benchmark_prompts": 1, "render_benchmark": 2, "score": 2, "metrics": 1, "report": 1,
        "total": 14,
    }  # fmt: skip
    assert "Nothing was run. The config is results/x/audit.yaml." in done.stdout
