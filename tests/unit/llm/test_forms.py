"""The forms in which answers are asked for: which is next where a server takes one not, and what the journal knows."""

import asyncio
import json
from collections import Counter

import pytest
from chat_server import Answer, completion, failure
from llm import lines, serving, told

from safetydpo.config.server import ChatServer
from safetydpo.errors import SafetyDPOError
from safetydpo.llm.journal import Journal
from safetydpo.llm.question import Form, Question, list_of, object_of
from safetydpo.llm.replies import Reply
from safetydpo.llm.server import Server

DOGS = ["a red dog", "a blue dog"]


def takes(*kinds, words="response_format is not supported", status=400, nothing=False):
    """A server that knows these forms alone: schema, bounded, json_object, text."""

    def answer(request):
        form = request.get("response_format", {})
        kind = {"json_schema": "schema", "json_object": "object"}.get(form.get("type"), "text")
        kind = "bounded" if "maxItems" in json.dumps(form) else kind
        if kind in kinds:
            return lines(request)
        if nothing:
            return Answer(b'{"choices": null, "usage": {"prompt_tokens": 20, "completion_tokens": 1}}')
        return failure(status, words if kind != "bounded" or "schema" not in kinds else "'maxItems' is not permitted")

    return answer


def forms(server):
    """The forms that were asked for, one a request."""
    kinds = {"json_schema": "schema", "json_object": "object", "text": "text"}
    sent = [request.get("response_format", {"type": "text"}) for request in server.requests]
    return ["bounded" if "maxItems" in json.dumps(form) else kinds[form["type"]] for form in sent]


@pytest.mark.parametrize(
    ("known", "tried"),
    [
        (("bounded",), ["bounded"]),
        (("schema",), ["bounded", "schema"]),
        (("object",), ["bounded", "object"]),
        (("text",), ["bounded", "object", "text"]),
    ],
)
@pytest.mark.parametrize("status", [400, 422, 500])
def test_a_form_that_the_server_refuses_is_tried_once_and_the_next_one_stays(tmp_path, capsys, known, tried, status):
    server = serving(answer=takes(*known, status=status))
    answers = told(server, tmp_path, "x", "y")
    assert answers == [([f"{dog} {request['seed']}" for dog in DOGS], "") for request in server.requests[-2:]]
    assert forms(server) == [*tried, known[0]]
    assert capsys.readouterr().out.count("asking for") == len(tried) - 1
    again = serving(answer=takes(*known))
    told(again, tmp_path, "x", "y", "z")
    assert forms(again) == [known[0]]  # the journal remembers it, and what was answered


def test_a_form_is_refused_once_however_many_ask(tmp_path, capsys):
    server = serving(answer=takes("text"), latency=0.02)
    answers = told(server, tmp_path, *"abcdefgh", at_once=8)
    assert all(fault == "" for _, fault in answers)
    asked = Counter(forms(server))
    assert (asked["bounded"], asked["schema"], asked["text"]) == (8, 0, 8)
    assert 1 <= asked["object"] <= 8  # those whose refusal of a schema came later may not have asked for it
    assert capsys.readouterr().out.count("asking for") == 2


def test_a_server_that_takes_no_form_ends_in_a_sentence(tmp_path):
    server = serving(answer=takes(words="no schema, no JSON, no grammar"))
    with pytest.raises(SafetyDPOError, match=r"as plain text \(400: no schema, no JSON, no grammar\): change prompts"):
        told(server, tmp_path, "x")
    assert forms(server) == ["bounded", "object", "text"]


def test_json_alone_falls_no_further_than_a_schema_without_bounds(tmp_path):
    server = serving(answer=takes("schema"))
    assert told(server, tmp_path, "x", reply="json")[0][1] == ""
    assert forms(server) == ["bounded", "schema"]
    server = serving(answer=takes("text"))
    with pytest.raises(SafetyDPOError, match=r"as JSON schema with bounds \(400: response_format is not supported\)"):
        told(server, tmp_path / "other", "x", reply="json")
    assert forms(server) == ["bounded"]


@pytest.mark.parametrize("reply", ["auto", "json", "text"])
def test_the_users_own_form_is_sent_once_and_named(tmp_path, reply):
    server = serving(answer=takes("text"))
    own = {"response_format": {"type": "json_object"}}
    with pytest.raises(
        SafetyDPOError,
        match=r"does not take prompts\.llm\.extra\.response_format \(400: response_format is not .*\): change",
    ):
        told(server, tmp_path, "x", reply=reply, extra=own)
    assert [request["response_format"] for request in server.requests] == [own["response_format"]]
    assert told(serving(answer=takes("object")), tmp_path, "x", reply=reply, extra=own)[0][1] == ""


@pytest.mark.parametrize("nothing", [b"null", b"[]"])
def test_answers_without_choices_mean_the_form_until_the_server_has_answered_in_it(tmp_path, nothing):
    server = serving(answer=takes("text", nothing=True))
    assert told(server, tmp_path, "x")[0][1] == ""
    assert forms(server) == ["bounded", "object", "text"]
    journal = Journal(tmp_path / "a.jsonl")
    assert (journal.lost, journal.form) == (2, "text")  # they were paid for
    journal.close()
    none = Answer(b'{"id": "1", "choices": %s, "usage": null}' % nothing)
    for more in ({"reply": "json"}, {"reply": "text"}, {"extra": {"response_format": {"type": "json_object"}}}):
        assert (
            told(serving({0: none}), tmp_path / str(more), "x", **more)[0][1] == "malformed"
        )  # there is no other form
    server = serving({1: none}, lines)
    assert [fault for _, fault in told(server, tmp_path / "other", "x", "y", "z")] == ["", "malformed", ""]
    assert forms(server) == ["bounded"] * 3


CONFIG = {"model": "m", "base_url": "http://localhost:1/v1", "api_key_env": None}
ANSWERS = {"bounded": '{"prompts": ["a dog"]}', "object": '{"prompts": ["a hen"]}', "text": "a cat\na cow"}


@pytest.mark.parametrize("now", ["", "schema", "object", "text"])
def test_an_answer_counts_in_whatever_form_it_was_asked_for(tmp_path, now):
    journal = Journal(tmp_path / "a.jsonl")
    server = Server(ChatServer(**CONFIG), "prompts.llm", journal)
    question = Question(lambda plain: f"Write, {plain}", list_of("prompts", 1), "x")
    for form, text in ANSWERS.items():
        journal.put(server._request(question._replace(name=form), form)[2], Reply(text, "stop", False, 9, 9))
    if now:
        journal.note_form(now)
    known = [server.known(question._replace(name=form)) for form in (*ANSWERS, "x")]
    assert known == [(["a dog"], ""), (["a hen"], ""), (["a cat", "a cow"], ""), None]
    journal.close()


KEYS = {  # of `Write, <plain>`, as the journals of runs have them that were made before images could be asked about
    "d65f8234308580603cbcf368026f99e8": {},
    "57ab8f08febb1ee0274b10ecd6b7f7d8": {"reply": "text"},
    "fd6ece65780018c0bfb1a6f561908439": {"seed": None, "temperature": None, "extra": {"top_p": 0.5}},
}


@pytest.mark.parametrize("bound", [None, 3])
@pytest.mark.parametrize("key", KEYS)
def test_a_journal_of_before_answers_all_requests(tmp_path, key, bound):
    line = {"key": key, "text": '{"prompts": ["a hill"]}', "finish_reason": "stop", "refused": False}
    (tmp_path / "a.jsonl").write_text(json.dumps({**line, "sent": 200, "written": 5}) + "\n")
    journal = Journal(tmp_path / "a.jsonl")
    question = Question(lambda plain: f"Write, {plain}", list_of("prompts", bound), "war/unsafe/0")
    llm = {"temperature": 1.0, "seed": 0, "max_tokens": 1024, **CONFIG, **KEYS[key]}
    asker = Server(ChatServer(**llm), "prompts.llm", journal)
    assert asker.known(question) == asyncio.run(asker.ask(question)) == (["a hill"], "")
    assert asker.known(question._replace(name="war/unsafe/1")) is None
    journal.close()


def test_the_form_of_an_answer_is_the_callers(tmp_path):
    server = serving(answer=lambda request: completion(str(request["response_format"]["json_schema"]["name"])))
    form = Form("size", object_of({"metres": {"type": "number"}}), lambda reply, plain: (len(reply.text), ""))
    assert told(server, tmp_path, "x", form=form) == [(4, "")]
    wanted = server.requests[0]["response_format"]["json_schema"]
    assert wanted["schema"] == {
        "type": "object",
        "properties": {"metres": {"type": "number"}},
        "required": ["metres"],
        "additionalProperties": False,
    }


def test_lists_have_bounds_where_their_length_is_known(tmp_path):
    server = serving(answer=takes("schema"))
    told(server, tmp_path, "x")
    told(server, tmp_path, "y", form=list_of("prompts"))
    bounded, free, same = [request["response_format"]["json_schema"] for request in server.requests]
    text = {"type": "array", "items": {"type": "string"}}
    assert free == same == {"name": "prompts", "schema": object_of({"prompts": text}), "strict": True}
    many = {"type": "array", "items": {"type": "string", "maxLength": 600}, "minItems": 2, "maxItems": 2}
    assert bounded == {**free, "schema": object_of({"prompts": many})}
