"""Changes of whole weights as factors: nearest at their rank, and what they leave out is counted."""

import copy

import pytest
import torch

from safetydpo.config.baselines import Baselines
from safetydpo.errors import SafetyDPOError
from safetydpo.export.factors import cut_off, difference, nearest
from safetydpo.export.stage import export
from safetydpo.methods.opening import open_method
from safetydpo.models.lora import FILE, energy_of, load_factors
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import write_safetensors

LAYER = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CONV, BIAS = "conv_in", "conv_in.bias"


def test_a_matrix_of_known_singular_values_is_cut_off_at_a_rank():
    change = torch.diag(torch.tensor([4.0, 3.0, 0.0]))
    a, b = nearest(change, 1)
    assert torch.allclose(b @ a, torch.diag(torch.tensor([4.0, 0.0, 0.0])), atol=1e-6)
    assert energy_of((a, b)) == pytest.approx(16)
    pair = torch.diag(torch.tensor([2.0, 1.0])), torch.diag(torch.tensor([2.0, 3.0]))
    assert energy_of(pair) == pytest.approx(25)  # of diag(4, 3)
    a, b = cut_off(pair, 1)
    assert torch.allclose(b @ a, torch.diag(torch.tensor([4.0, 0.0])), atol=1e-6)
    assert energy_of((a, b)) == pytest.approx(16)


def test_a_convolution_at_full_rank_is_exact():
    change = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    a, b = nearest(change, 99)
    assert (a.shape, b.shape) == ((5, 3, 3, 3), (5, 5, 1, 1))
    assert torch.allclose(torch.einsum("orxy,rikl->oikl", b, a), change, atol=1e-5)
    assert energy_of((a, b)) == pytest.approx(float(change.square().sum()))
    again = cut_off((a, b), 99)
    assert [factor.shape for factor in again] == [a.shape, b.shape]
    assert torch.allclose(torch.einsum("orxy,rikl->oikl", again[1], again[0]), change, atol=1e-5)


def test_weights_that_no_lora_holds_are_counted_and_named(run_of):
    base = run_of("sd15").network
    changed = copy.deepcopy(base)
    with torch.no_grad():
        changed.get_submodule(LAYER).weight[0, 0] += 3
        changed.conv_in.bias[0] += 4
    update = difference(base, changed, 1, "esd-u")
    assert (list(update.factors), update.left) == ([LAYER], [BIAS])
    assert update.kept == pytest.approx(9 / 25)  # 3 x 3 of 3 x 3 + 4 x 4
    assert "1 other weights that changed (biases, norms) are left out, first conv_in.bias" in " ".join(update.notes(1))
    with pytest.raises(SafetyDPOError, match="esd-u changes no layer"):
        difference(base, base, 1, "esd-u")


@pytest.mark.parametrize("name", ["uce", "external-x"])
def test_whole_weights_become_a_lora_that_renders_the_same(run_of, tmp_path, name):
    run = run_of("sd15")
    old = run.network.get_submodule(LAYER).weight
    new = (old + torch.outer(torch.linspace(-9, 9, len(old)), torch.linspace(-1, 2, old.shape[1]))).detach()
    unet = copy.deepcopy(run.network)
    unet.get_submodule(LAYER).weight.data = new
    unet.save_pretrained(tmp_path / "unet")
    config = run.config.model_copy(
        update={"baselines": Baselines(externals=[{"name": "x", "path": str(tmp_path / "unet")}])}
    )
    weights = tmp_path / "run/baselines/uce/weights.safetensors"
    write_safetensors({f"{LAYER}.weight": new}, weights, {})
    with pytest.raises(SafetyDPOError, match=f"{name} is no LoRA of the run: lora of it needs a rank"):
        export(config, tmp_path / "run", name, "lora", tmp_path / "out")
    said = export(config, tmp_path / "run", name, "lora", tmp_path / "out", rank=1)
    assert "100.00 %" in said
    ((layer, (a, b)),) = load_factors(tmp_path / "out", "unet").items()
    assert (layer, a.shape[0]) == (LAYER, 1)
    assert torch.allclose(b @ a, new - old, atol=1e-4)
    pipeline = load_pipeline(run.model)
    pipeline.load_lora_weights(str(tmp_path / "out"), weight_name=FILE)
    expected = run.image(open_method(name, run.model, config.baselines, weights))
    assert abs(run.image(pipeline) - expected).max() <= 2
    assert abs(run.base_image() - expected).max() > 2


def test_an_external_that_changes_more_than_the_network_is_no_lora(run_of, tmp_path):
    run = run_of("sd15")
    pipeline = load_pipeline(run.model)
    pipeline.text_encoder.get_input_embeddings().weight.data += 1
    pipeline.save_pretrained(tmp_path / "theirs")
    config = run.config.model_copy(
        update={"baselines": Baselines(externals=[{"name": "x", "path": str(tmp_path / "theirs")}])}
    )
    with pytest.raises(SafetyDPOError, match=r"external-x has another text_encoder than .* take `pipeline`"):
        export(config, run.folder, "external-x", "kohya", tmp_path / "out", rank=2)
    export(config, run.folder, "external-x", "pipeline", tmp_path / "out")
    found = load_pipeline(run.model.model_copy(update={"id": str(tmp_path / "out")}))
    assert found.text_encoder.get_input_embeddings().weight.equal(pipeline.text_encoder.get_input_embeddings().weight)
