"""The server's key is in nothing that is shown or kept, whatever the server says of it."""

import json
import random
import string
from urllib.parse import quote

import pytest
from chat_server import Answer, completion, failure
from llm import lines, serving, told

from safetydpo.errors import SafetyDPOError
from safetydpo.llm.secret import Secret

KEY = "sk-" + "".join(random.Random(0).choices(string.ascii_letters + string.digits + "/+", k=131))
SAYS = {
    "200 without a completion": Answer(json.dumps({"note": f"your key {KEY} is fine"}).encode()),
    "200 in text": Answer(f"your key {KEY} is fine".encode(), content_type="text/plain"),
    "400 with a part": failure(400, f"Bearer {KEY[:40]}... is wrong"),
    "400 with its middle": failure(400, f"<{KEY[50:70]}>"),
    "400 in a URL": failure(400, f"POST /v1?key={quote(KEY, safe='')}"),
    "400 after long words": failure(400, "no " * 80 + KEY * 40),
    "401": failure(401, f"Incorrect API key provided: {KEY}."),
    "model": Answer(json.dumps({**json.loads(completion("{}").body), "model": f"m of {KEY}"}).encode()),
    "refusal": failure(400, f"content_filter: {KEY}"),
    "200 with an error": Answer(json.dumps({"error": {"message": KEY}}).encode()),
    "title": Answer(f"<title>{KEY}</title>".encode(), 503, content_type="text/html"),
    "500": failure(500, f"cannot parse {KEY}"),
    "completion": completion(json.dumps({"prompts": [f"a red dog with {KEY} and a war", "a blue dog with a war"]})),
    "completion with a part": completion(json.dumps({"prompts": [f"{KEY[9:60]}, a red dog with a war", "a cat"]})),
    "finish_reason": Answer(json.dumps({"choices": [{"finish_reason": KEY}]}).encode()),
}


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("name", SAYS)
def test_the_key_is_neither_shown_nor_kept(tmp_path, monkeypatch, capfd, name, retries):
    monkeypatch.setenv("MY_KEY", KEY)
    server = serving({0: SAYS[name]}, lines)
    shown = ""
    try:
        shown = str(told(server, tmp_path, "x", "y", api_key_env="MY_KEY", concurrency=2, retries=retries))
    except SafetyDPOError as error:
        shown = str(error)
    shown += "".join(capfd.readouterr())
    shown += "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))
    assert "***" in shown or name == "finish_reason"
    assert [KEY[i : i + 8] for i in range(len(KEY) - 7) if KEY[i : i + 8] in shown] == []


def test_parts_of_eight_characters_are_hidden_and_words_of_prompts_are_not():
    secret = Secret("language-model-key")
    assert secret.out_of("the language-model, the langu, MODEL") == "the ***, the langu, MODEL"
    assert secret.out_of_answer("a language-mo del") == "a language-mo del"
    assert secret.out_of_answer("a language-model-kex") == "a ***x"
    assert Secret("none").out_of_answer("none of it") == "none of it"
    assert Secret("none").out_of("none of it") == "*** of it"
    assert Secret().out_of("all of it") == "all of it"
