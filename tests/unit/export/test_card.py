"""The card is one that huggingface_hub reads, and says the run's own numbers."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from safetydpo.export.card import COLUMNS, front_matter
from safetydpo.export.registry import FORMATS
from safetydpo.export.stage import export
from safetydpo.storage.files import write_parquet

METHOD = "merged-co-merge"


def row(method, benchmark, metric, value, category="all"):
    values = (method, benchmark, category, metric, value, value - 0.01, value + 0.02, 40, 0)
    return dict(zip(COLUMNS, values, strict=True))


ROWS = [
    row("base", "test", "ip", 0.9),
    row(METHOD, "test", "ip", 0.125),
    row(METHOD, "test", "ip", 0.7, category="ring"),
    row(METHOD, "safe", "clip_score", 88.4),
    row("base", "safe", "clip_score", 88.5),
    row(METHOD, "attack-ring-a-bell", "ip", 0.25),
    row("all-single", "test", "ip", 0.5),
]


@pytest.fixture
def measured(run_of, tmp_path):
    """A run with metrics, whose base has a card and a name on the hub."""
    run = run_of("sd15")
    source, folder = tmp_path / "source", tmp_path / "results/tiny"
    shutil.copytree(run.model.id, source)
    shutil.copytree(run.folder, folder)
    index = json.loads((source / "model_index.json").read_text())
    (source / "model_index.json").write_text(json.dumps(index | {"_name_or_path": "someone/some-model"}))
    (source / "README.md").write_text("---\nlicense: creativeml-openrail-m\ntags: [x]\n---\ntext")
    write_parquet(ROWS, folder / "metrics.parquet")
    attacks = run.config.attacks.model_copy(update={"run": ["ring-a-bell"]})
    model = run.model.model_copy(update={"id": str(source)})
    return run.config.model_copy(update={"attacks": attacks, "model": model}), folder


def test_the_front_matter_is_what_the_hub_reads(measured, tmp_path):
    config, folder = measured
    export(config, folder, METHOD, "lora", tmp_path / "out")
    card = ModelCard.load(tmp_path / "out/README.md")
    data = card.data
    assert (data.license, data.base_model, data.pipeline_tag) == (
        "creativeml-openrail-m",
        "someone/some-model",
        "text-to-image",
    )
    assert (data.base_model_relation, data.library_name) == ("adapter", "diffusers")
    assert {"lora", "safety"} <= set(data.tags)
    found = {(r.dataset_name, r.metric_type): r.metric_value for r in data.eval_results}
    assert found == {("test", "ip"): 0.125, ("safe", "clip_score"): 88.4, ("attack-ring-a-bell", "ip"): 0.25}
    assert "model-index" in yaml.safe_load(card.content.split("---")[1])


def test_the_text_has_intervals_attacks_and_how_it_is_loaded(measured, tmp_path):
    config, folder = measured
    export(config, folder, METHOD, "pipeline", tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert "| test | IP ↓ | 0.900 [0.890, 0.920] | 0.125 [0.115, 0.145] | 40 |" in text
    assert "| safe | CLIPScore ↑ | 88.5 [88.5, 88.5] | 88.4 [88.4, 88.4] | 40 |" in text
    effects, attacks = text.split("## Attacks")
    assert "attack-ring-a-bell" not in effects.split("## Measured")[1]
    assert "| attack-ring-a-bell | IP ↓ | – | 0.250 [0.240, 0.270] | 40 |" in attacks
    for name in config.category_names:
        assert name in text.split("## What was removed")[1].split("##")[0]
    assert 'DiffusionPipeline.from_pretrained("this folder", dtype=torch.float32)' in text
    assert "at the scale 1.5" in text
    for file in (tmp_path / "out").rglob("*.safetensors"):
        assert file.relative_to(tmp_path / "out").as_posix() in text
    assert str(Path(tmp_path)) not in text


def test_what_is_not_known_is_said(run_of, tmp_path):
    run = run_of("sd15")
    data = front_matter(run.asked(), FORMATS["pipeline"], None)
    assert (data.license, data.base_model, data.eval_results) == ("unknown", None, None)
    export(run.config, run.folder, METHOD, "kohya", tmp_path / "out")
    text = (tmp_path / "out/README.md").read_text()
    assert "Nothing was measured of this method" in text
    assert "No attack was run against this method" in text
    assert ModelCard(text).data.tags[0] == "safety"
