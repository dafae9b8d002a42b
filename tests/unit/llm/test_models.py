"""Names of models as servers write them."""

import pytest

from safetydpo.llm.models import names_in, same_model

SAME = [
    ("gpt-4o-mini", "gpt-4o-mini-2024-07-18"),
    ("qwen2.5", "qwen2.5:7b"),
    ("llama3.2", "llama3.2:latest"),
    ("gemini-2.0-flash", "models/gemini-2.0-flash-001"),
    ("Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b-instruct"),
    ("gemma", "/models/gemma.gguf"),
    ("gemma.gguf", "C:\\models\\Gemma.gguf"),
    ("claude-3-haiku", "claude-3-haiku-20240307"),
    ("m", "m"),
]
OTHERS = [
    ("gpt-4o", "gpt-4o-mini"),
    ("llama3.2:1b", "llama3.2:3b"),
    ("qwen2.5-7b", "qwen2.5-7b-instruct"),
    ("m", "mistral"),
    ("llama-3", "llama-3-8b"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_names_of_one_model(one, other):
    assert same_model(one, other)
    assert same_model(other, one)


@pytest.mark.parametrize(("one", "other"), OTHERS)
def test_names_of_two_models(one, other):
    assert not same_model(one, other)
    assert not same_model(other, one)


@pytest.mark.parametrize(
    ("listed", "names"),
    [
        ({"object": "list", "data": [{"id": "a"}, {"id": "b"}]}, ["a", "b"]),
        ({"models": [{"name": "a"}], "data": None}, ["a"]),
        ([{"id": "a"}, "b", {"id": 7}, None], ["a", "b"]),
        ({"data": "a"}, []),
        ("<html>", []),
        ({}, []),
        (None, []),
    ],
)
def test_lists_of_any_shape_are_read(listed, names):
    assert names_in(listed) == names
