"""Model cards: their head is YAML and their snippet Python, whatever the model is called."""

import ast

import pytest
import yaml

from safetydpo.models.cards import merged_card


@pytest.mark.parametrize(
    "model",
    ["a/b", "./my: model", 'it\'s "so" # no', "- a", "null", "@x", "Ünï/模型", "a\\b", "x " * 80 + "y", "a: {b}"],
)
def test_a_cards_head_and_snippet_name_the_model(model):
    card = merged_card("co-merge", model, ["ring"], 4)
    head = yaml.safe_load(card.split("---\n")[1])
    assert head == {"base_model": model, "library_name": "diffusers", "tags": ["lora", "safety", "diffusion-dpo"]}
    code = card.split("```python\n")[1].split("```")[0]
    texts = [node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)]
    assert set(texts) == {model, "this folder"}
