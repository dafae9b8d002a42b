"""Secrets are refused where configs are shown, and the refusal does not show them."""

from datetime import date

import pytest

from safetydpo.config.loading import load_config
from safetydpo.config.server import is_variable, secrets_in, url_fault
from safetydpo.errors import SafetyDPOError

KEY = "sk-hunter2hunter2hunter2"
REFUSED = [
    ({"base_url": "http://me:hunter2@localhost:8000/v1"}, "`base_url` holds a user, a password or a key"),
    ({"base_url": "me:hunter2@localhost/v1"}, "`base_url` holds a user, a password or a key"),
    ({"base_url": "http://localhost/v1?api_key=hunter2"}, "`base_url` holds a user, a password or a key"),
    ({"base_url": "http://localhost/v1?a=b&code=hunter2"}, "`base_url` holds a user, a password or a key"),
    ({"base_url": "http://localhost/v1#access_token=hunter2"}, "`base_url` holds a user, a password or a key"),
    ({"base_url": f"https://localhost/{KEY}/v1"}, "`base_url` holds a user, a password or a key"),
    ({"base_url": "http://hunter2:x/v1"}, "`base_url` is no address such as"),
    ({"base_url": "hunter2"}, "`base_url` is no address such as"),
    ({"base_url": "http://hunter2\n/v1"}, "`base_url` is no address such as"),
    ({"api_key_env": KEY}, "`api_key_env` must be the name of an environment variable"),
    ({"api_key_env": "hunter2" * 5}, "`api_key_env` must be the name of an environment variable"),
    ({"api_key": "hunter2"}, "`api_key` holds a secret"),
    ({"extra": {"api_key": "hunter2"}}, "`extra.api_key` holds a secret"),
    ({"extra": {"headers": {"Authorization": "hunter2"}}}, "`extra.headers.Authorization` holds a secret"),
    ({"extra": {"x": [{"accessToken": "hunter2"}]}}, "`extra.x.accessToken` holds a secret"),
    ({"extra": {"authentication": {"value": "hunter2"}}}, "`extra.authentication.value` holds a secret"),
    ({"extra": {"user": KEY}}, "`extra.user` holds a secret"),
    ({"extra": {KEY: 1}}, "`extra` holds a secret"),
    ({"extra": KEY}, "`extra` holds a secret"),
]


@pytest.mark.parametrize(("llm", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_secret_in_the_config_is_refused_and_not_shown(with_value, llm, message):
    config = with_value("prompts.source", "openai")
    config["prompts"]["llm"] = {"model": "m", "concurrency": 0, **llm}
    with pytest.raises(SafetyDPOError) as error:
        load_config(config)
    assert f"prompts.llm: {message}" in str(error.value)
    assert "hunter2" not in str(error.value)


def test_what_requests_need_is_no_secret():
    extra = {
        "max_completion_tokens": 9,
        "eos_token": "</s>",
        "prompt_cache_key": "pairs",
        "stop_token_ids": [1],
        "return_token": True,
        "reasoning": {"effort": "low"},
        "user": "me",
        "models": ["meta-llama/Llama-3.1-8B-Instruct"],
    }
    assert list(secrets_in(extra)) == []
    for url in ("http://localhost:8000/v1", "https://h.example/openai/v1?api-version=preview", "http://[::1]:80/v1"):
        assert url_fault(url) == ""
    assert all(map(is_variable, ("OPENAI_API_KEY", "my_key", "KEY_2", "Key")))


def test_a_field_that_no_request_can_carry_is_refused(with_value):
    config = with_value("prompts.source", "openai")
    config["prompts"]["llm"] = {"model": "m", "extra": {"since": [date(2024, 1, 1)]}}  # as YAML reads 2024-01-01
    with pytest.raises(SafetyDPOError, match=r"prompts\.llm\.extra\.since\..*: input was not a valid JSON value"):
        load_config(config)


@pytest.mark.parametrize("key", ["concurrency", "retries", "timeout", "max_tokens", "token_budget", "patience", "n"])
def test_a_slip_of_zeros_is_refused(with_value, key):
    config = with_value("prompts.source", "openai")
    config["prompts"]["llm"] = {"model": "m", key: 10**13}
    with pytest.raises(SafetyDPOError, match=rf"prompts\.llm\.{key}: Input should be less than or equal to"):
        load_config(config)
