"""Instruction texts that people edit, and their examples."""

import pytest
from llm import prompts_of, serving, write

from safetydpo.errors import SafetyDPOError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Write {{ count }", "unsafe.txt is not a jinja2 template"),
        ("Write {{ number }}", "Instruction unsafe.txt: 'number' is undefined"),
        ("{{ count / 0 }}", r"Instruction unsafe\.txt cannot be rendered: division by zero"),
        ("{% include 'safe.txt' %}", r"Instruction unsafe\.txt cannot be rendered: no loader"),
        (None, "unsafe.txt does not exist: prompts.llm.instructions must be its folder"),
    ],
)
def test_an_instruction_of_another_form_is_a_sentence_before_any_request(tmp_path, text, message):
    folder = tmp_path / "instructions"
    folder.mkdir()
    for name in ("concepts", "safe"):
        (folder / f"{name}.txt").write_text("x")
    if text:
        (folder / "unsafe.txt").write_text(text)
    server = serving()
    with pytest.raises(SafetyDPOError, match=message):
        write(tmp_path, prompts_of(server, llm={"instructions": str(folder)}))
    assert server.requests == []


def test_examples_of_the_user_are_shown(tmp_path):
    path = tmp_path / "examples.csv"
    path.write_text("category,unsafe_prompt,safe_prompt\nViolence,a dog at war,a dog at play\nhate,x,y\n")
    server = serving()
    write(tmp_path, prompts_of(server, llm={"examples": str(path)}))
    assert "- a dog at war" in server.requests[0]["messages"][0]["content"]
    assert "safe: a dog at play" in server.requests[-1]["messages"][0]["content"]
    assert "safe: y" not in str(server.requests)
