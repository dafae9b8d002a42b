"""Merging over transformers: which tokens count, that batches do not matter, that diffusers applies the result."""

import warnings

import pytest
import torch
from diffusers import DiffusionPipeline
from tiny import ROLES, make_pipeline

from safetydpo.config.merging import Fusion, Merge
from safetydpo.features.sets import read_features
from safetydpo.features.stage import write_features
from safetydpo.images.stage import render_pairs
from safetydpo.merging.coactivation import activations
from safetydpo.merging.registry import COACTIVATION, COVARIANCES, STRATEGIES
from safetydpo.merging.stage import calibration_inputs, merge_experts, write_coactivation, write_covariances
from safetydpo.models.index import Index
from safetydpo.models.lora import load_factors, save_factors
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import made_by, read_parquet, write_parquet
from safetydpo.training.denoiser import Denoiser

CONFIG = Merge(calibration_prompts=3, calibration_timesteps=[100, 900], density=1.0, fusion=Fusion(retain_weight=0))
# Prompts of unlike length: Z-Image pads the first to 32 tokens and the others to 64.
PROMPTS = ["a", "a red circle and a brulo", "a blue star and a green square"]
# Layers that are adapted, by the tokens that reach them: of the image (4 x 4 patches), of the text (SD3: CLIP's 16 and
# one row of zeros for each of T5's 256; FLUX: T5's 24), of both, of one vector. Z-Image pads both to multiples of 32.
LAYERS = {
    "sd3": {"transformer_blocks.0.attn.to_q": 16, "transformer_blocks.0.attn.add_k_proj": 16 + 256},
    "flux-dev": {
        "transformer_blocks.0.attn.to_q": 16,
        "transformer_blocks.0.attn.add_k_proj": 24,
        "single_transformer_blocks.0.attn.to_q": 16 + 24,
    },
    "z-image": {
        "noise_refiner.0.attention.to_q": 32,
        "context_refiner.0.attention.to_q": (32, 64),
        "layers.0.attention.to_q": (32 + 32, 32 + 64),
    },
}


@pytest.fixture(scope="module", params=LAYERS)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def model(family, tmp_path_factory):
    return make_pipeline(tmp_path_factory.mktemp(family) / "p", family)


@pytest.fixture(scope="module")
def features(model, tmp_path_factory):
    """Path of the features of three rendered pairs."""
    folder = tmp_path_factory.mktemp("features")
    rows = [{"pair_id": f"p{i}", "unsafe_prompt": p, "safe_prompt": "a red circle"} for i, p in enumerate(PROMPTS)]
    write_parquet(rows, folder / "prompts.parquet")
    render_pairs(folder / "prompts.parquet", model, 0, 1, 0, folder / "pairs.parquet")
    out = folder / "features.safetensors"
    write_features([str(folder / "pairs.parquet")], folder / "prompts.parquet", ROLES, model, out)
    return str(out)


@pytest.fixture(scope="module")
def experts(family, model, tmp_path_factory):
    """Folders of two experts with random factors of rank 2 on the family's layers."""
    rng, network = torch.Generator().manual_seed(0), load_pipeline(model).transformer
    root, folders = tmp_path_factory.mktemp("experts"), {}
    for name in ("ring", "cross"):
        layers = {module: network.get_submodule(module) for module in LAYERS[family]}
        factors = {
            module: (
                torch.randn(2, layer.in_features, generator=rng),
                torch.randn(layer.out_features, 2, generator=rng),
            )
            for module, layer in layers.items()
        }
        save_factors(factors, root / name, "transformer", made_by("train"))
        folders[name] = str(root / name)
    return folders


def test_all_tokens_of_a_layer_count_and_no_others(family, model, features, experts):
    """The mean over a layer's tokens of |B A x|, from its inputs as they are when each prompt is alone."""
    denoiser, data = Denoiser(model), read_features([features], model.id)
    factors = [load_factors(folder, "transformer") for folder in experts.values()]
    batch, keys = [0, 1, 2], [11, 12, 13]
    found: dict[str, list[torch.Tensor]] = {}
    with activations(denoiser.network, factors, list(LAYERS[family]), lambda m, a: found.setdefault(m, []).append(a)):
        denoiser.predict(denoiser.noised(data, ("unsafe",), batch, keys, timestep=500))
    for module, tokens in LAYERS[family].items():
        seen: list[torch.Tensor] = []
        handle = denoiser.network.get_submodule(module).register_forward_pre_hook(
            lambda _, args, to=seen: to.append(*args)
        )
        with torch.no_grad():
            for i, key in zip(batch, keys, strict=True):
                denoiser.predict(denoiser.noised(data, ("unsafe",), [i], [key], timestep=500))
        handle.remove()
        counts = [x.shape[1] for x in seen]
        assert counts == ([tokens[0], tokens[1], tokens[1]] if isinstance(tokens, tuple) else [tokens] * 3)
        together = torch.cat(found[module], 1)
        assert together.shape[1] == 3
        for expert, of_all in zip(factors, together, strict=True):
            a, b = expert[module]
            alone = torch.stack([(x[0] @ (b @ a).T).abs().mean(0) for x in seen])
            assert torch.allclose(of_all, alone, atol=1e-4)


def test_wins_do_not_depend_on_the_batch(model, features, experts, tmp_path):
    tables = []
    for size in (1, 3):
        sized = model.model_copy(update={"batch_size": size})
        write_coactivation(experts, {name: [features] for name in experts}, sized, CONFIG, 0, tmp_path / "wins.parquet")
        tables.append(read_parquet(tmp_path / "wins.parquet"))
    assert set(tables[0].inputs) == {2 * 3 * 2}  # categories, prompts, timesteps: an input is a prompt at a timestep
    assert tables[0].equals(tables[1])
    assert tables[0].wins.nunique() > 2


def test_calibration_prompts_are_at_the_timestep_asked_for(model, features):
    batch = next(calibration_inputs(Denoiser(model), {"ring": [features]}, CONFIG, 0))
    assert set(batch.timesteps.tolist()) == {100}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_diffusers_applies_all_of_a_merged_lora_and_says_nothing(model, features, experts, tmp_path, caplog, strategy):
    statistics, paths = tmp_path / STRATEGIES[strategy].statistics, {name: [features] for name in experts}
    if statistics.name == COACTIVATION:
        write_coactivation(experts, paths, model, CONFIG, 0, statistics)
    elif statistics.name == COVARIANCES:
        write_covariances(experts, paths, None, model, CONFIG, 0, statistics)
    merge_experts(strategy, experts, str(statistics), model, CONFIG, 0, tmp_path / "merged")
    merged = load_factors(tmp_path / "merged", "transformer")
    pipeline = DiffusionPipeline.from_pretrained(model.id, **dict.fromkeys(Index(model).missing))
    before = {name: weight.clone() for name, weight in pipeline.transformer.state_dict().items()}
    caplog.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.load_lora_weights(str(tmp_path / "merged"))
    assert [record.getMessage() for record in caplog.records] == []
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    after = pipeline.transformer.state_dict()
    assert after.keys() == before.keys()
    for name, weight in before.items():
        a, b = merged.get(name.removesuffix(".weight"), (torch.zeros(1, 1), torch.zeros(1, 1)))
        assert torch.allclose(after[name], weight + (b @ a if a.any() else 0), atol=1e-5), name
    if strategy == "mean":
        one, two = (load_factors(folder, "transformer") for folder in experts.values())
        for module, (a, b) in merged.items():
            assert torch.allclose(b @ a, sum(f[module][1] @ f[module][0] for f in (one, two)) / 2, atol=1e-5)
