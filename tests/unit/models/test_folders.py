"""Which of a model folder's files are read."""

import pytest

from safetydpo.errors import SafetyDPOError
from safetydpo.models.folders import folder_of, refuse_pickle, variant_of


@pytest.mark.parametrize(
    ("names", "variant"),
    [
        (["model.safetensors"], None),
        (["model.fp16.safetensors"], "fp16"),
        (["model.fp16.safetensors", "model.safetensors"], None),
        (["model.bf16.safetensors", "model.fp16.safetensors"], "fp16"),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors"], "fp16"),
        (["model-00001-of-00002.fp16.safetensors"], "fp16"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], None),
        (["pytorch_model.bin", "model.non_ema.safetensors"], "non_ema"),
        (["config.json", "._model.fp16.safetensors"], None),
    ],
)
def test_the_variant_is_taken_where_there_is_nothing_else(tmp_path, names, variant):
    for name in names:
        (tmp_path / name).touch()
    assert variant_of(tmp_path) == variant


def test_pickles_alone_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(
        SafetyDPOError, match=r"pytorch_model\.bin is a pickle.*from_pretrained\(\"m\"\)\.save_pretrained"
    ):
        refuse_pickle(tmp_path, "m")
    (tmp_path / "model.fp16.safetensors").touch()
    refuse_pickle(tmp_path, "m")


@pytest.mark.parametrize("name", ["no/such/folder", "/no/folder", "./no", "lora.safetensors", "runs/lora.safetensors"])
def test_what_can_be_no_hub_id_is_a_path_to_correct(name):
    with pytest.raises(SafetyDPOError, match=f"There is no {name}, neither a folder nor a file: correct the path"):
        folder_of(name)


def test_a_hub_id_is_where_the_cache_has_it(tmp_path, monkeypatch):
    snapshot = tmp_path / "models--me--tiny/snapshots/c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    (tmp_path / "models--me--tiny/refs").mkdir()
    (tmp_path / "models--me--tiny/refs/main").write_text("c0ffee")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert (folder_of("me/tiny"), folder_of("me/other")) == (snapshot, None)
    assert folder_of(str(tmp_path)) == tmp_path
    with pytest.raises(SafetyDPOError, match="is one file, not the folder"):
        folder_of(str(snapshot / "model_index.json"))
