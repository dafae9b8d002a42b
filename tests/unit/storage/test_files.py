"""LoRA round trip through diffusers, renders, features, and files that are whole or not there."""

import resource

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.features.sets import read_features
from safetydpo.images.stage import render_prompts
from safetydpo.models.lora import load_factors, save_factors
from safetydpo.models.pipeline import load_pipeline
from safetydpo.models.sampling import render
from safetydpo.storage.files import (
    made_by,
    read_parquet,
    read_safetensors,
    whole_file,
    write_parquet,
    write_safetensors,
    write_text,
)
from safetydpo.storage.images import unpng


@pytest.fixture
def lora(tiny, tmp_path):
    """Random factors on two attention projections, saved as a LoRA."""
    torch.manual_seed(3)
    unet = load_pipeline(tiny).unet
    names = [n for n, m in unet.named_modules() if n.endswith(("attn1.to_q", "attn2.to_v"))][:2]
    layers = [unet.get_submodule(name) for name in names]
    factors = {
        n: (torch.randn(2, m.in_features), torch.randn(m.out_features, 2)) for n, m in zip(names, layers, strict=True)
    }
    save_factors(factors, tmp_path / "lora", made_by("train"))
    return tmp_path / "lora", factors


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_fused_lora_adds_scale_times_b_a(tiny, lora, scale):
    folder, factors = lora
    base, fused = load_pipeline(tiny).unet, load_pipeline(tiny, folder, scale).unet
    for name, (a, b) in factors.items():
        expected = base.get_submodule(name).weight + scale * b @ a
        assert torch.allclose(fused.get_submodule(name).weight, expected, atol=1e-5)


def test_the_lora_file_changes_renders_as_fusing_does(tiny, lora):
    folder, _ = lora
    plain = load_pipeline(tiny)
    before = next(render(plain, ["a red circle"], [7], tiny)).astype(int)
    plain.load_lora_weights(str(folder))
    adapted = next(render(plain, ["a red circle"], [7], tiny)).astype(int)
    fused = next(render(load_pipeline(tiny, folder), ["a red circle"], [7], tiny)).astype(int)
    assert np.abs(adapted - fused).max() <= 1
    assert np.abs(adapted - before).max() > 1


def test_factors_survive_the_file(lora):
    folder, factors = lora
    again = load_factors(folder)
    assert all(torch.equal(x, y) for m in factors for x, y in zip(factors[m], again[m], strict=True))


def test_a_lora_of_another_model_is_refused(tiny, tmp_path):
    save_factors({"mid_block.nothing.to_q": (torch.ones(1, 3), torch.ones(3, 1))}, tmp_path, made_by("train"))
    with pytest.raises(
        SafetyDPOError, match=r"unet\.mid_block\.nothing\.to_q\.lora_A\.weight: the model has no mid_block"
    ):
        load_pipeline(tiny, tmp_path)


def test_a_lora_of_another_width_is_refused_by_its_first_wrong_key(tiny, tmp_path, lora):
    _, factors = lora
    module = min(factors)
    (a, b), wide = factors[module], tmp_path / "wide"
    save_factors(factors | {module: (torch.ones(a.shape[0], a.shape[1] + 5), b)}, wide, made_by("train"))
    with pytest.raises(SafetyDPOError) as error:
        load_pipeline(tiny, wide)
    assert f"unet.{module}.lora_A.weight is for {a.shape[1] + 5} inputs, the model has {a.shape[1]}" in str(error.value)


def prompts(folder, n=5):
    rows = [
        {"prompt_id": f"x-{i}", "prompt": f"a {s} circle", "category": "c", "seed": 2**33 + i}
        for i, s in enumerate("abcde")
    ]
    write_parquet(pd.DataFrame(rows[:n]), folder / "prompts.parquet")
    return folder / "prompts.parquet"


def test_images_depend_on_neither_batch_nor_shard(tiny, tmp_path):
    path = prompts(tmp_path)
    render_prompts(path, tiny.model_copy(update={"batch_size": 5}), tmp_path / "whole.parquet")
    for shard in (0, 1):
        one = tiny.model_copy(update={"batch_size": 1})
        render_prompts(path, one, tmp_path / f"{shard}.parquet", shard=shard, shards=2)
    whole = read_parquet(tmp_path / "whole.parquet")
    parts = pd.concat([read_parquet(tmp_path / f"{i}.parquet") for i in (0, 1)])
    assert list(whole.prompt_id) == list(parts.prompt_id)
    for a, b in zip(whole.image, parts.image, strict=True):
        assert np.abs(unpng(a).astype(int) - unpng(b).astype(int)).max() <= 1  # rounding of float sums
    assert np.abs(unpng(whole.image[0]).astype(int) - unpng(whole.image[1]).astype(int)).max() > 1


def test_more_shards_than_rows_is_said(tiny, tmp_path):
    with pytest.raises(SafetyDPOError, match="has 2 rows, fewer than the 3 shards"):
        render_prompts(prompts(tmp_path, 2), tiny, tmp_path / "out.parquet", shards=3)


def test_features_hold_the_vae_posterior_and_end_with_the_empty_prompt(tiny, tiny_features):
    tensors, _ = read_safetensors(tiny_features / "features.safetensors")
    pipeline, pairs = load_pipeline(tiny), read_parquet(tiny_features / "pairs.parquet")
    pixels = torch.from_numpy(unpng(pairs.unsafe_image[1]).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        posterior = pipeline.vae.encode(pixels).latent_dist
        empty = pipeline.encode_prompt("", "cpu", 1, False)[0]
    assert torch.allclose(tensors["unsafe_mean"][1], posterior.mean[0], atol=1e-5)
    assert torch.allclose(tensors["unsafe_std"][1], posterior.std[0], atol=1e-5)
    assert torch.allclose(tensors["encoder_hidden_states"][-1], empty[0], atol=1e-5)


def test_features_with_nan_or_of_another_model_are_refused(tiny, tiny_features, tmp_path):
    path = tiny_features / "features.safetensors"
    with pytest.raises(SafetyDPOError, match="not other/model"):
        read_features([path], "other/model")
    tensors, header = read_safetensors(path)
    tensors["safe_mean"][0, 0, 0, 0] = torch.nan
    write_safetensors(tensors, tmp_path / "nan.safetensors", header)
    with pytest.raises(SafetyDPOError, match="not finite in safe_mean"):
        read_features([tmp_path / "nan.safetensors"], tiny.id)


def test_truncated_files_are_named(tmp_path):
    write_parquet([{"a": 1}], tmp_path / "t.parquet")
    write_safetensors({"a": torch.ones(100)}, tmp_path / "t.safetensors", {})
    for name, read in (("t.parquet", read_parquet), ("t.safetensors", read_safetensors)):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(SafetyDPOError, match=rf"{path} is not a whole .* file .*: delete it and rerun snakemake"):
            read(path)
        path.unlink()
        with pytest.raises(SafetyDPOError, match="is missing: rerun snakemake"):
            read(path)


def test_a_failed_write_leaves_nothing(tmp_path):
    def fail():
        with whole_file(tmp_path / "x.parquet") as temporary:
            temporary.write_text("begun")
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SafetyDPOError, match=r"Cannot write .*: File exists\. Free space or make the folder writable"):
        write_parquet([{"a": 1}], tmp_path / "file/x.parquet")


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: write_text("x" * 100_000, folder / "x.txt"),
        lambda folder: write_parquet([{"a": np.random.default_rng(0).bytes(100_000)}], folder / "x.parquet"),
        lambda folder: write_safetensors({"a": torch.zeros(100_000)}, folder / "x.safetensors", {}),
    ],
    ids=["text", "parquet", "safetensors"],
)
def test_a_disk_that_fills_up_is_said(tmp_path, write):
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # the kernel refuses the rest of a write, as a full disk
    try:
        with pytest.raises(SafetyDPOError, match=r"Cannot write .*: .*File too large.*Free space"):
            write(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert list(tmp_path.iterdir()) == []


def test_headers_tell_the_stage(tmp_path):
    write_parquet([{"a": 1}], tmp_path / "x.parquet", made_by("prompts", seed=4))
    assert b'"stage": "prompts"' in pq.read_schema(tmp_path / "x.parquet").metadata[b"safetydpo"]
