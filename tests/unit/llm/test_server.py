"""What is sent, how fast, and what happens when a server misbehaves: the table of docs/prompts.md, line by line."""

import asyncio
import json

import pytest
from chat_server import Answer, completion, failure
from llm import lines, serving, told

from safetydpo.errors import SafetyDPOError
from safetydpo.llm.journal import Journal
from safetydpo.llm.server import OutOfBudgetError, Pace

DOGS = ["a red dog", "a blue dog"]
TWO = json.dumps({"prompts": DOGS})
PAGE = Answer(b"<!doctype html><title>busy</title>", content_type="text/html")
RETRIED = {
    "429 with Retry-After": (failure(429, "slow down", **{"retry-after": "0.2"}), "429: slow down"),
    "429 without": (failure(429, "slow down"), "429: slow down"),
    "500": (failure(500, "oops"), "500: oops"),
    "502": (Answer(b"<html><title>bad gateway</title></html>", 502, content_type="text/html"), "502: bad gateway"),
    "503 with status 200": (Answer(b'{"error": {"code": 503, "message": "no provider"}}'), "503: no provider"),
    "reset": (Answer(b"", reset=True), "Connection error. Server disconnected"),
    "hangs": (Answer(b"", delay=30), "no answer in 2 s"),
}
# fault -> (answer to the first request, fault)
ASKED_AGAIN = {
    "truncated JSON": (completion(TWO[:-10]), "malformed"),
    "wrong schema": (completion('{"prompts": [{"text": "a red dog"}]}'), "malformed"),
    "other JSON": (completion('{"answer": ["a red dog"]}'), "malformed"),
    "prose without JSON": (completion("Here are some ideas about dogs."), "malformed"),
    "no content": (completion(None), "malformed"),
    "JSON that the service calls bad": (failure(400, "Failed to generate JSON", "json_validate_failed"), "malformed"),
    "refusal text": (completion("I'm sorry, but I can't help with that."), "refusal"),
    "refusal field": (completion(None, refusal="I cannot do that."), "refusal"),
    "finish_reason length": (completion('{"prompts": ["a re', "length"), "truncated"),
    "finish_reason content_filter": (completion("", "content_filter"), "refusal"),
    "content policy 400": (failure(400, "filtered", "content_policy_violation"), "refusal"),
    "DeepSeek": (failure(400, "Content Exists Risk", "invalid_request_error"), "refusal"),
    "moderation 403": (failure(403, "Your input was flagged"), "refusal"),
}
FAILED = {
    "HTML page with status 200": PAGE,
    "broken JSON body": Answer(b'{"choices": [{"mess'),
    "bottomless lists": Answer(b'{"choices": ' + b"[" * 50_000),
    "no completion": Answer(b'{"note": "hello"}'),
}


@pytest.mark.parametrize("name", RETRIED)
def test_transient_failures_are_retried_said_and_leave_no_trace(tmp_path, capsys, name):
    answer, cause = RETRIED[name]
    server = serving({0: answer}, lines)
    answers = told(server, tmp_path, "x", timeout=2)
    assert answers == told(serving(answer=lines), tmp_path / "quiet", "x")
    assert server.requests[0] == server.requests[1]
    assert len(server.requests) == 2
    said = capsys.readouterr().out
    assert said.count("try 2 of 7: ") == 1
    assert cause in said


def test_the_line_of_a_timeout_says_what_to_do(tmp_path, capsys):
    slow = Answer(b"", delay=30)
    with pytest.raises(
        SafetyDPOError, match=r"failed 1 requests in a row, the last with: no answer in 0\.1 s\. Answers"
    ):
        told(serving(answer=lambda request: slow), tmp_path, "x", timeout=0.1, retries=1)
    assert (
        "/v1: no answer in 0.1 s, try 2 of 2: lower concurrency or raise timeout (prompts.llm)\n"
        in capsys.readouterr().out
    )


def test_lost_tries_count_for_the_budget_now_and_later(tmp_path):
    # The message has 11 characters, 2 tokens; until something is written, an answer is taken to have `max_tokens`.
    soon = {"retry-after-ms": "50"}
    slow, busy, broken = Answer(b"", delay=30), failure(429, "slow", **soon), failure(500, "x", **soon)
    server = serving({0: slow, 1: busy, 2: broken}, lines)
    ((texts, _),) = told(server, tmp_path, "x", timeout=1, max_tokens=100)
    assert len(texts) == 2
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    lost = [{"lost": 1, "sent": sent, "written": written} for sent, written in ((2, 100), (0, 0), (2, 0))]
    assert records[:3] == lost
    journal = Journal(tmp_path / "a.jsonl")
    assert (journal.lost, journal.spent) == (3, 104 + records[3]["sent"] + records[3]["written"])
    journal.close()
    server = serving({0: slow}, lines)
    with pytest.raises(OutOfBudgetError):  # 2 + 100 are within it; once they are lost, there is no room for as many
        told(server, tmp_path / "poor", "x", timeout=1, max_tokens=100, token_budget=203)
    assert len(server.requests) == 1


def test_a_retry_keeps_its_place_among_those_in_flight(tmp_path):
    server = serving({0: failure(503, "x", **{"retry-after-ms": "100"})}, lines)
    assert len(told(server, tmp_path, "x", "y", at_once=2, concurrency=1)) == 2
    first, again, second = [request["seed"] for request in server.requests]
    assert first == again != second  # which waited for both tries of the first


@pytest.mark.parametrize("name", ASKED_AGAIN)
def test_what_is_no_answer_has_a_fault_and_is_kept(tmp_path, name):
    answer, fault = ASKED_AGAIN[name]
    server = serving({0: answer}, lines)
    assert [found for _, found in told(server, tmp_path, "x", "y")] == [fault, ""]
    assert len({request["seed"] for request in server.requests}) == len(server.requests) == 2
    again = serving()
    assert [found for _, found in told(again, tmp_path, "x", "y")] == [fault, ""]  # nor is it paid for twice
    assert again.requests == []


def test_a_refusal_by_the_service_is_told_in_its_words_once(tmp_path, capsys):
    server = serving(answer=lambda request: failure(400, "Content Exists Risk"))
    assert {fault for _, fault in told(server, tmp_path, *"abc")} == {"refusal"}
    said = capsys.readouterr().out
    assert said.count("refuses a request (400: Content Exists Risk): such are counted") == said.count("Risk") == 1


@pytest.mark.parametrize("name", FAILED)
def test_what_is_no_completion_is_a_failed_request_and_asked_anew(tmp_path, name):
    server = serving({0: FAILED[name]}, lines)
    assert [fault for _, fault in told(server, tmp_path, "x", at_once=2)] == ["server"]
    assert [fault for _, fault in told(server, tmp_path, "x")] == [""]
    assert len(server.requests) == 2


def test_without_seeds_too_another_try_is_asked_and_not_read_from_the_journal(tmp_path):
    server = serving({0: completion("no JSON here")}, lines)
    assert [fault for _, fault in told(server, tmp_path, "x", "y", seed=None)] == ["malformed", ""]
    assert not any("seed" in request for request in server.requests)


def test_a_refused_key_fails_at_once_and_is_never_printed(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    for where in ("models", "chat"):
        server = serving({0: failure(401, "Incorrect API key provided: sk-very-secret.", "invalid_api_key")})
        if where == "models":
            server.models = failure(401, "Incorrect API key provided: sk-very-secret.")
        with pytest.raises(SafetyDPOError, match=r"refuses the key in MY_KEY \(401: .*provided: \*\*\*") as error:
            told(server, tmp_path, "x", api_key_env="MY_KEY")
        assert len(server.requests) == (where == "chat")
        assert "secret" not in str(error.value) + "".join(capfd.readouterr())
        assert not any(b"secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            failure(404, "The model does not exist"),
            r"/v1 has no model m \(404: The model does not exist\): correct prompts",
        ),
        (failure(400, "Model Not Exist"), r"has no model m \(400: Model Not Exist\): correct prompts\.llm\.model or"),
        (failure(403, "no access"), r"refuses a request without key \(prompts\.llm\.api_key_env\) \(403: no access\)"),
        (failure(429, "You exceeded your quota", "insufficient_quota"), r"/v1: no credit left \(429: You exceeded"),
        (
            failure(402, "Insufficient Balance"),
            r"no credit left \(402: Insufficient Balance\); answers until now are kept",
        ),
        (
            failure(400, "Unsupported parameter: 'max_tokens'"),
            r"does not take the request \(400: .*'max_tokens'\): change",
        ),
        (Answer(b'{"detail": [{"loc": ["seed"], "msg": "no"}]}', 422), r"does not take the request \(422: seed: no\)"),
        (Answer(b"no such thing", 418, content_type="text/plain"), r"does not take the request \(418: no such thing\)"),
        (Answer(b"<title>Not here</title>", 404, content_type="text/html"), r"has no model m \(404: Not here\)"),
    ],
)
def test_what_no_request_can_mend_ends_the_run_at_once_in_the_servers_words(tmp_path, answer, sentence):
    server = serving(answer=lambda request: answer)
    with pytest.raises(SafetyDPOError, match=sentence):
        told(server, tmp_path, "x", "y")
    assert len(server.requests) == 1


def test_a_request_that_is_longer_than_the_context_is_a_fault_of_its_own_and_not_kept(tmp_path):
    long = failure(400, "the request exceeds the available context size", type="exceed_context_size_error")
    server = serving({0: long}, lines)
    assert [fault for _, fault in told(server, tmp_path, "x", "y")] == ["context", ""]
    assert [fault for _, fault in told(server, tmp_path, "x", "y")] == ["", ""]
    assert len(server.requests) == 3


def test_a_server_that_goes_on_failing_ends_the_stage_and_keeps_what_it_said(tmp_path):
    server = serving({n: failure(500, "down") for n in range(2, 99)}, lines)
    with pytest.raises(SafetyDPOError, match=r"failed 1 requests in a row, .* with: 500: down.*run the same command"):
        told(server, tmp_path, *"abc", retries=0)
    again = serving(answer=lines)
    assert [fault for _, fault in told(again, tmp_path, *"abc")] == [""] * 3
    assert len(again.requests) == 1


def test_a_missing_key_and_a_silent_server_are_sentences(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(SafetyDPOError, match=r"Environment variable NO_KEY is not set: export NO_KEY=\.\.\."):
        told(serving(), tmp_path, "x", api_key_env="NO_KEY")
    with pytest.raises(
        SafetyDPOError,
        match=r"Nothing answers at http://127.0.0.1:1/v1 \(Connection error.*: start .*, or correct prompts.llm.base",
    ):
        told(serving(), tmp_path, "x", base_url="http://127.0.0.1:1/v1")


def listing(*names):
    """What a server answers to /models."""
    return Answer(json.dumps({"data": [{"id": name} for name in names]}).encode())


def test_a_model_that_the_server_does_not_list_is_said_and_ends_the_run_where_it_is_not_there(tmp_path, capsys):
    server = serving({1: failure(404, "no such model")}, lines)
    server.models = listing(*(f"other-{i}" for i in range(12)), "m1")
    with pytest.raises(
        SafetyDPOError, match=r"has no model m \(404: .*\.base_url; it lists m1, (\S+ ){8}\S+ \.\.\.\.$"
    ):
        told(server, tmp_path, "x", "y")
    said = capsys.readouterr().out
    assert said.count("lists no m but m1, ") == 1
    server.models = listing("m:latest")
    told(server, tmp_path, "z")
    assert capsys.readouterr().out == ""


def test_another_model_than_was_asked_for_is_said_once(tmp_path, capsys):
    def answer(request):
        return Answer(json.dumps({**json.loads(lines(request).body), "model": "/models/other.gguf"}).encode())

    told(serving(answer=answer), tmp_path, "x", "y")
    assert capsys.readouterr().out.count("answers as /models/other.gguf, not as prompts.llm.model, m: see which") == 1
    told(serving(answer=answer), tmp_path, "z", model="other")
    assert capsys.readouterr().out == ""


def test_the_request_says_what_the_config_says(tmp_path):
    server = serving(answer=lines)
    extra = {"max_completion_tokens": 9}
    told(server, tmp_path, "x", temperature=None, max_tokens=None, seed=None, extra=extra, reply="text")
    assert set(server.requests[0]) == {"model", "messages", "max_completion_tokens"}
    assert "authorization: bearer none" in server.headers[0].lower()


def test_a_pace_spreads_amounts_evenly(monkeypatch):
    now, waits = [100.0], []

    async def paced():
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: now[0])

        async def sleep(seconds):
            waits.append(seconds)

        monkeypatch.setattr("safetydpo.llm.server.asyncio.sleep", sleep)
        pace = Pace(120)  # one each half second
        for amount in (1, 1, 4):
            await pace.wait(amount)
        now[0] += 10
        await pace.wait(1)
        monkeypatch.undo()

    asyncio.run(paced())
    assert waits == [0, 0.5, 1.0, 0]
