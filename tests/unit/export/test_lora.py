"""The LoRA file holds the tuned scale, works at strength 1 in diffusers and PEFT, and can be cut off at a rank."""

import json

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open

from safetydpo.export.stage import export
from safetydpo.models.lora import FILE
from safetydpo.models.pipeline import load_pipeline

METHOD, SCALE = "merged-co-merge", 1.5


def read(folder, name=FILE):
    with safe_open(folder / name, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118


@pytest.mark.parametrize("family", ["sd15", "sdxl", "sd3", "flux-dev", "z-image"])
def test_at_strength_one_it_renders_what_the_workflow_rendered(run_of, tmp_path, family):
    run = run_of(family)
    export(run.config, run.folder, METHOD, "lora", tmp_path / "out")
    pipeline = load_pipeline(run.model)
    pipeline.load_lora_weights(str(tmp_path / "out"))
    assert abs(run.image(pipeline) - run.image()).max() <= 2


def test_peft_makes_the_adapter_of_the_header(run_of, tmp_path):
    run = run_of("sd15")
    export(run.config, run.folder, METHOD, "lora", tmp_path / "out")
    tensors, header = read(tmp_path / "out")
    facts = {k.removeprefix("unet."): v for k, v in json.loads(header["lora_adapter_metadata"]).items()}
    unet = inject_adapter_in_model(LoraConfig(**facts), load_pipeline(run.model).unet)
    found = set_peft_model_state_dict(unet, {key.removeprefix("unet."): value for key, value in tensors.items()})
    assert not found.unexpected_keys
    for name, (a, b) in run.factors.items():
        assert torch.allclose(unet.get_submodule(name).get_delta_weight("default"), SCALE * b @ a, atol=1e-5)
    assert header["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert str(run.model.id) not in str(header)


def test_a_rank_keeps_the_largest_singular_values(run_of, tmp_path):
    run = run_of("sd15")
    said = export(run.config, run.folder, METHOD, "lora", tmp_path / "out", rank=1, dtype="float16")
    tensors, _ = read(tmp_path / "out")
    kept = whole = 0.0
    for name, (a, b) in run.factors.items():
        u, s, vh = torch.linalg.svd(SCALE * b @ a)
        nearest = s[0] * u[:, :1] @ vh[:1]
        down, up = (tensors[f"unet.{name}.lora_{side}.weight"] for side in "AB")
        assert (down.dtype, down.shape[0], up.shape[1]) == (torch.float16, 1, 1)
        assert torch.allclose(up.float() @ down.float(), nearest, atol=0.01)
        kept, whole = kept + s[0].item() ** 2, whole + s.square().sum().item()
    assert f"Cut off at rank 1: {100 * kept / whole:.2f} % of the squared norm" in said
    assert 0.3 < kept / whole < 0.95
