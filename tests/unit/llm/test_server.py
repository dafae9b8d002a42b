"""What is sent, how fast, and what happens when a server misbehaves: the table of docs/prompts.md, line by line."""

import asyncio
import json

import pytest
from chat_server import Answer, completion, failure
from llm import prompts_of, serving, write

from safetydpo.errors import SafetyDPOError
from safetydpo.llm.journal import Journal
from safetydpo.llm.question import Form, Question, list_of, object_of
from safetydpo.llm.replies import Reply
from safetydpo.llm.server import Pace, Server

TWO = json.dumps({"prompts": ["a red dog with a fighting", "a blue dog with a fighting"]})
PAGE = Answer(b"<!doctype html><title>busy</title>", content_type="text/html")
RETRIED = {
    "429 with Retry-After": failure(429, "slow down", **{"retry-after": "0.2"}),
    "429 without": failure(429, "slow down"),
    "500": failure(500, "oops"),
    "502": Answer(b"<html>bad gateway</html>", 502, content_type="text/html"),
    "reset": Answer(b"", reset=True),
    "hangs": Answer(b"", delay=30),
}
# fault -> (answer to the first request, reason in rejected/)
ASKED_AGAIN = {
    "truncated JSON": (completion(TWO[:-10]), "malformed"),
    "wrong schema": (completion('{"prompts": [{"text": "a red dog"}]}'), "malformed"),
    "other JSON": (completion('{"answer": ["a red dog"]}'), "malformed"),
    "prose without JSON": (completion("Here are some ideas about dogs."), "malformed"),
    "empty choices": (Answer(b'{"id": "1", "choices": [], "usage": null}'), "malformed"),
    "no content": (completion(None), "malformed"),
    "refusal text": (completion("I'm sorry, but I can't help with that."), "refusal"),
    "refusal field": (completion(None, refusal="I cannot do that."), "refusal"),
    "refusal inside": (completion('{"prompts": ["I cannot help with this request."]}'), "refusal"),
    "finish_reason length": (completion(TWO[:-10], "length"), "truncated"),
    "finish_reason content_filter": (completion("", "content_filter"), "refusal"),
    "content policy 400": (failure(400, "filtered", "content_policy_violation"), "refusal"),
    "HTML page with status 200": (PAGE, "server"),
    "broken JSON body": (Answer(b'{"choices": [{"mess'), "server"),
}


@pytest.mark.parametrize("name", RETRIED)
def test_transient_failures_are_retried_and_leave_no_trace(tmp_path, name):
    server = serving({0: RETRIED[name], 3: RETRIED[name]})
    pairs, rejected, said = write(tmp_path, prompts_of(server, llm={"timeout": 0.5}))
    assert (len(pairs), len(rejected)) == (4, 0)
    bodies = [json.dumps(request) for request in server.requests]
    assert len(bodies) == len(set(bodies)) + 2 == 6 + 2  # two of unsafe, four of safe prompts; the failed ones again
    assert said == "violence: 4 pairs of 2 concepts"


@pytest.mark.parametrize("name", ASKED_AGAIN)
def test_answers_that_are_no_good_are_recorded_and_asked_again(tmp_path, name):
    answer, reason = ASKED_AGAIN[name]
    server = serving({0: answer})
    pairs, rejected, _ = write(tmp_path, prompts_of(server, llm={"concurrency": 2}))
    assert len(pairs) == 4
    assert rejected.reason.to_list() == [reason]
    seeds = [request["seed"] for request in server.requests]
    assert len(set(seeds)) == len(seeds) == 7  # the second time with another seed


@pytest.mark.parametrize("name", ASKED_AGAIN)
def test_a_safe_prompt_that_is_no_good_gets_a_second_try(tmp_path, name):
    server = serving({1: ASKED_AGAIN[name][0]})
    pairs, rejected, _ = write(tmp_path, prompts_of(server, llm={"concurrency": 2}), concepts=("war",))
    assert (len(pairs), len(rejected), len(server.requests)) == (4, 0, 6)


def test_without_seeds_too_a_second_try_is_asked_and_not_read_from_the_journal(tmp_path):
    server = serving({1: completion("no JSON here")})
    config = prompts_of(server, llm={"seed": None, "temperature": 0.0})
    pairs, rejected, _ = write(tmp_path, config, concepts=("war",))
    assert not any("seed" in request for request in server.requests)
    assert (len(pairs), len(rejected), len(server.requests)) == (4, 0, 1 + 4 + 1)


def test_duplicates_are_recorded_and_replaced(tmp_path):
    again = json.dumps({"prompts": ["a red dog with a fighting", "A RED dog, with the fighting!"]})
    pairs, rejected, said = write(tmp_path, prompts_of(serving({0: completion(again)})))
    assert len(pairs) == pairs.unsafe_prompt.nunique() == 4
    assert rejected.reason.to_list() == ["duplicate"]
    assert said.endswith("1 rejected (1 duplicate)")


def test_a_refused_key_fails_at_once_and_is_never_printed(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    for where in ("models", "chat"):
        server = serving({0: failure(401, "Incorrect API key provided: sk-very-secret.", "invalid_api_key")})
        if where == "models":
            server.models = failure(401, "Incorrect API key provided: sk-very-secret.")
        with pytest.raises(SafetyDPOError, match=r"refuses the key in MY_KEY \(401: .*provided: \*\*\*") as error:
            write(tmp_path, prompts_of(server, llm={"api_key_env": "MY_KEY"}))
        assert len(server.requests) == (where == "chat")
        assert "secret" not in str(error.value) + "".join(capfd.readouterr())
        assert not any(b"secret" in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_an_unknown_model_fails_at_once_and_is_named(tmp_path):
    server = serving(dict.fromkeys(range(99), failure(404, "The model does not exist", "model_not_found")))
    with pytest.raises(SafetyDPOError, match=r"has no model gpt-none \(404: .*\): correct prompts.llm.model"):
        write(tmp_path, prompts_of(server, llm={"model": "gpt-none"}))
    assert len(server.requests) == 1


def test_an_account_without_credit_fails_at_once(tmp_path):
    server = serving(dict.fromkeys(range(99), failure(429, "You exceeded your quota", "insufficient_quota")))
    with pytest.raises(SafetyDPOError, match="no credit left"):
        write(tmp_path, prompts_of(server, llm={"retries": 0, "concurrency": 4}))


def test_a_request_that_the_server_does_not_know_fails_at_once(tmp_path):
    server = serving(dict.fromkeys(range(99), failure(400, "Unsupported parameter: 'max_tokens'")))
    with pytest.raises(SafetyDPOError, match=r"does not take the request \(400: .*'max_tokens'"):
        write(tmp_path, prompts_of(server))
    assert len(server.requests) == 1


def test_a_server_that_knows_no_schema_is_asked_for_plain_text(tmp_path):
    server = serving({0: failure(400, "response_format json_schema is not supported")})
    pairs, rejected, _ = write(tmp_path, prompts_of(server))
    assert (len(pairs), len(rejected)) == (4, 0)
    assert ["response_format" in request for request in server.requests] == [True] + [False] * 6
    assert "one prompt a line" in server.requests[1]["messages"][0]["content"]
    more = serving()  # the journal remembers it
    pairs, _, _ = write(tmp_path, prompts_of(more, pairs=6))
    assert not any("response_format" in request for request in more.requests)


def test_a_server_that_goes_on_failing_ends_the_stage_and_keeps_what_it_said(tmp_path):
    server = serving({n: failure(500, "down") for n in range(4, 99)})
    with pytest.raises(SafetyDPOError, match=r"failed 1 requests in a row, .* with: .*down.*run the same command"):
        write(tmp_path, prompts_of(server, llm={"retries": 0}))
    again = serving()
    pairs, _, _ = write(tmp_path, prompts_of(again))
    assert (len(pairs), len(again.requests)) == (4, 2)  # four of the six answers were there


def test_a_missing_key_and_a_silent_server_are_sentences(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_KEY", raising=False)
    with pytest.raises(SafetyDPOError, match=r"Environment variable NO_KEY is not set: export NO_KEY=\.\.\."):
        write(tmp_path, prompts_of(serving(), llm={"api_key_env": "NO_KEY"}))
    with pytest.raises(SafetyDPOError, match=r"Nothing answers at http://127\.0\.0\.1:1/v1 \(.*start the server"):
        write(tmp_path, prompts_of(serving(), llm={"base_url": "http://127.0.0.1:1/v1"}))


def test_the_request_says_what_the_config_says(tmp_path):
    server = serving()
    llm = {
        "temperature": None,
        "max_tokens": None,
        "seed": None,
        "extra": {"max_completion_tokens": 9},
        "reply": "text",
    }
    write(tmp_path, prompts_of(server, llm=llm))
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


def test_what_was_answered_as_json_counts_after_the_server_has_refused_the_schema(tmp_path):
    llm, journal = prompts_of(serving({})).llm, Journal(tmp_path / "a.jsonl")
    server = Server(llm, "prompts.llm", journal)
    question = Question(lambda plain: f"Write, {plain}", list_of("prompts"), "x")
    assert server.known(question) is None
    journal.put(server._request(question, False)[2], Reply('{"prompts": ["a dog"]}', "stop", False, 9, 9))
    journal.note_plain()
    assert server.known(question) == (["a dog"], "")
    other = question._replace(name="y")
    journal.put(server._request(other, True)[2], Reply("a cat\na cow", "stop", False, 9, 9))
    assert server.known(other) == (["a cat", "a cow"], "")


KEYS = {  # of `Write, <plain>`, as the journals of runs have them that were made before images could be asked about
    "d65f8234308580603cbcf368026f99e8": {},
    "57ab8f08febb1ee0274b10ecd6b7f7d8": {"reply": "text"},
    "fd6ece65780018c0bfb1a6f561908439": {"seed": None, "temperature": None, "extra": {"top_p": 0.5}},
}


@pytest.mark.parametrize("key", KEYS)
def test_a_journal_of_before_answers_all_requests(tmp_path, key):
    server = serving()
    llm = prompts_of(server, llm=KEYS[key]).llm
    line = {"key": key, "text": '{"prompts": ["a hill"]}', "finish_reason": "stop", "refused": False}
    (tmp_path / "a.jsonl").write_text(json.dumps({**line, "sent": 200, "written": 5}) + "\n")
    journal = Journal(tmp_path / "a.jsonl")
    question = Question(lambda plain: f"Write, {plain}", list_of("prompts"), "war/unsafe/0")
    assert llm
    asker = Server(llm, "prompts.llm", journal)
    assert asker.known(question) == asyncio.run(asker.ask(question)) == (["a hill"], "")
    assert server.requests == []
    assert asker.known(question._replace(name="war/unsafe/1")) is None
    journal.close()


def test_the_form_of_an_answer_is_the_callers(tmp_path):
    server = serving(answer=lambda request: completion(str(request["response_format"]["json_schema"]["name"])))
    form = Form("size", object_of({"metres": {"type": "number"}}), lambda reply, plain: (len(reply.text), ""))
    llm, journal = prompts_of(server).llm, Journal(tmp_path / "a.jsonl")
    assert llm

    async def asked():
        asker = Server(llm, "prompts.llm", journal)
        answer = await asker.ask(Question(lambda plain: "How far?", form, "x"))
        await asker.close()
        return answer

    assert asyncio.run(asked()) == (4, "")
    wanted = server.requests[0]["response_format"]["json_schema"]
    assert wanted["schema"] == {
        "type": "object",
        "properties": {"metres": {"type": "number"}},
        "required": ["metres"],
        "additionalProperties": False,
    }
    journal.close()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (failure(404, "no"), r"has no model m .*: correct judges\.panel: eye\.server\.model or base_url"),
        (failure(400, "no pictures"), r"\(400: .*no pictures.*\): change judges\.panel: eye\.server \(model, reply,"),
        (failure(401, "no"), r"refuses a request without key \(judges\.panel: eye\.server\.api_key_env\)"),
    ],
)
def test_errors_name_the_section_of_the_config(tmp_path, fault, sentence):
    llm, journal = prompts_of(serving({0: fault})).llm, Journal(tmp_path / "a.jsonl")
    assert llm

    async def asked():
        asker = Server(llm, "judges.panel: eye.server", journal)
        try:
            await asker.ask(Question(lambda plain: "Hm", list_of("prompts"), "x"))
        finally:
            await asker.close()

    with pytest.raises(SafetyDPOError, match=sentence):
        asyncio.run(asked())
    journal.close()
