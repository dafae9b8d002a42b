"""Model cards: their head is YAML, their snippet is Python that loads the LoRA, whatever the model is and is called."""

import ast

import pandas as pd
import pytest
import torch
import yaml
from tiny import FAMILIES, TRANSFORMERS, make_pipeline, train_config

from safetydpo.models.cards import Aligned, expert_card, merged_card
from safetydpo.models.families.registry import FAMILIES as KINDS
from safetydpo.models.lora import save_factors
from safetydpo.models.pipeline import load_network

LOG = pd.DataFrame(
    {"loss": [0.7], "lr": [1e-3], "implicit_accuracy": [0.5], "winner_error": [0.2], "reference_winner_error": [0.2]}
)


def snippet(card: str) -> str:
    return card.split("```python\n")[1].split("```")[0]


def head(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def aligned(name: str, kind=KINDS[0]) -> Aligned:
    return Aligned(name, kind, [], {"num_inference_steps": 2})


@pytest.mark.parametrize(
    "model",
    ["a/b", "./my: model", 'it\'s "so" # no', "- a", "null", "@x", "Ünï/模型", "a\\b", "x " * 80 + "y", "a: {b}"],
)
def test_a_cards_head_and_snippet_name_the_model(model):
    card = merged_card("co-merge", aligned(model), ["ring"], 4)
    tags = ["lora", "safety", "diffusion-dpo"]
    assert head(card) == {"base_model": model, "library_name": "diffusers", "tags": tags}
    texts = [node.value for node in ast.walk(ast.parse(snippet(card))) if isinstance(node, ast.Constant)]
    assert set(texts) == {model, "this folder", "a prompt", 2, 0}  # steps; the first image


@pytest.mark.parametrize("family", FAMILIES)
def test_the_snippet_loads_the_lora_of_each_family_and_renders(tmp_path, family):
    model = make_pipeline(tmp_path / "a model", family)
    parts = load_network(model)
    kind, places = parts.family.kind, parts.network.named_modules()
    shapes = {name: m.weight.shape for name, m in places if f".{name}".endswith(tuple(f".{t}" for t in kind.targets))}
    factors = {name: (torch.ones(2, d), torch.full((out, 2), 0.1)) for name, (out, d) in shapes.items()}
    save_factors(factors, tmp_path / "lora", kind.component, {})
    base = Aligned.of(model)
    assert list(base.missing) == (["text_encoder_3", "tokenizer_3"] if family == "sd3" else [])
    card = expert_card("ring", base, train_config(), "uniform", 3, 9, LOG)
    names: dict = {}
    exec(snippet(card).replace("this folder", str(tmp_path / "lora")), names)
    loaded = {name for name, _ in getattr(names["pipe"], kind.component).named_parameters() if ".lora_" in name}
    assert len(loaded) == 2 * len(factors)
    assert names["image"].size == (16, 16)


def test_an_experts_card_says_how_it_was_trained():
    flow = next(kind for kind in KINDS if kind.name == "flux")
    config = train_config(noise="rendered", reference="cached", draws=5)
    card = expert_card("ring", aligned("a/b", flow), config, "logit-normal", 3, 9, LOG)
    assert head(card)["tags"] == ["lora", "safety", "flow-dpo"]
    assert "for the transformer of `a/b`, trained with Flow-DPO" in card
    assert "beta 5000 (errors are means over a latent's elements)" in card
    assert (
        "- timesteps the sigmoid of a normal draw, shifted as the model's scheduler shifts its steps; the noise that a "
        "pair's images were rendered from; 5 fixed draws of each pair\n"
    ) in card
    settings = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert settings["timestep_sampling"] == "logit-normal"
    assert settings["target_modules"][:4] == ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"]
    card = expert_card("ring", aligned("a/b"), train_config(target_modules=["to_v"]), "uniform", 3, 9, LOG)
    assert "for the unet of `a/b`, trained with Diffusion-DPO on" in card
    assert "- timesteps drawn uniformly; noise drawn anew\n" in card
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])["target_modules"] == ["to_v"]


def test_every_transformer_is_trained_by_flow_matching():
    assert {kind.component for kind in KINDS if kind.flow} == {"transformer"}
    assert len(TRANSFORMERS) == 5
