"""From a completion to the texts that were asked for."""

import json

import pytest
from chat_server import Answer, completion
from llm import lines, serving, told

from safetydpo.llm.replies import Reply, reply_of, texts_of

TWO = json.dumps({"prompts": ["a red dog", "a blue dog"]})
DOGS = ["a red dog", "a blue dog"]


def said(text, finish_reason="stop", plain=False):
    """What is read in a text, after its thoughts are cut out."""
    choice = {"message": {"content": text}, "finish_reason": finish_reason}
    return texts_of(reply_of({"choices": [choice]}, 0), "prompts", plain)


def completed(**changes):
    """A completion some of whose fields are other than they should be."""
    choice = {"message": {"content": TWO}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}, **changes}


def ending(finish_reason):
    """A completion that ends for this reason."""
    return completed(choices=[{"message": {"content": TWO}, "finish_reason": finish_reason}])


READ = Reply(TWO, "stop", False, 3, 4)
NONE = READ._replace(text="", finish_reason="nothing")
ODD = {
    "usage null": (
        completed(usage={"prompt_tokens": 200, "completion_tokens": None}),
        READ._replace(sent=200, written=10),
    ),
    "usage a list": (completed(usage=[1]), READ._replace(sent=2, written=10)),
    "counts of no kind": (
        completed(usage={"prompt_tokens": "9", "completion_tokens": -1}),
        READ._replace(sent=2, written=10),
    ),
    "choices null": (completed(choices=None), NONE),
    "choices empty": (completed(choices=[]), NONE),
    "choice a text": (completed(choices=["hello"]), READ._replace(text="", finish_reason="other")),
    "message a list": (completed(choices=[{"message": ["hello"]}]), READ._replace(text="", finish_reason="other")),
    "finish_reason an object": (ending({}), READ._replace(finish_reason="other")),
    "finish_reason of ours": (ending("form"), READ._replace(finish_reason="other")),
    "finish_reason of Google": (ending("PROHIBITED_CONTENT"), READ._replace(finish_reason="content_filter")),
    "finish_reason with words": (ending("content_filter: SAFETY"), READ._replace(finish_reason="content_filter")),
    "finish_reason of Zhipu": (ending("sensitive"), READ._replace(finish_reason="content_filter")),
    "finish_reason of a length": (ending("MAX_TOKENS"), READ._replace(finish_reason="length")),
    "finish_reason of DeepSeek": (ending("insufficient_system_resource"), READ._replace(finish_reason="length")),
    "half a character": (
        completed(choices=[{"message": {"content": "a \ud83d"}, "finish_reason": "stop"}]),
        READ._replace(text="a \ufffd"),
    ),
    "content a number": (
        completed(choices=[{"message": {"content": 7}}]),
        READ._replace(text="", finish_reason="other"),
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_fields_of_another_kind_are_taken_as_missing(name):
    completion, reply = ODD[name]
    assert len(TWO) // 4 == 10  # of which the estimates are
    assert reply_of(completion, 2) == reply


THOUGHT = json.dumps({"prompts": ["TODO a dog"]})
THOUGHTS = {
    "tags": f"<think>Ideas: {THOUGHT}</think>{TWO}",
    "tags twice": f"<think>x</think>{THOUGHT}<think>no</think>\n{TWO}",
    "an end alone": f"Ideas: {THOUGHT}\n</think>\n\n{TWO}",
    "another tag": f"<Thinking>{THOUGHT}</Thinking>{TWO}",
    "a tag in brackets": f"[THINK]{THOUGHT}[/THINK]{TWO}",
    "channels": f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{TWO}",
    "parts": [{"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]}, {"type": "text", "text": TWO}],
    "parts of text": [{"type": "text", "text": TWO[:10]}, {"type": "text", "text": TWO[10:]}],
    "nothing": TWO,
}


@pytest.mark.parametrize("name", THOUGHTS)
def test_thoughts_are_never_the_answer(name):
    assert said(THOUGHTS[name]) == (DOGS, "")


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("text", [f"<think>{THOUGHT}", "<think>a red dog\na blue dog", "x</think>"])
def test_thoughts_without_an_answer_are_none(text, plain):
    assert said(text, plain=plain) == ([], "malformed")
    assert said(text, "length", plain) == ([], "truncated")


def test_thoughts_beside_the_answer_are_counted_where_the_server_counts_nothing():
    message = {"content": "<think>ab</think>" + TWO, "reasoning_content": "x" * 41}  # 17 + 40 + 41 characters
    reply = reply_of({"choices": [{"message": message}]}, 2)
    assert (reply.text, reply.sent, reply.written) == (TWO, 2, 98 // 4)
    assert reply_of({"choices": [{"message": {"reasoning_content": TWO}}]}, 2).text == ""


def test_thoughts_in_a_journal_of_before_are_none_either(tmp_path):
    server = serving(answer=lambda request: completion("<think></think>\na red dog\na blue dog"))
    assert told(server, tmp_path, "x", reply="text") == [(DOGS, "")]
    record = json.loads((tmp_path / "a.jsonl").read_text())
    assert record["text"] == "\na red dog\na blue dog"
    record["text"] = f"<think>a green dog</think>{record['text']}"
    (tmp_path / "a.jsonl").write_text(json.dumps(record) + "\n")
    assert told(serving(), tmp_path, "x", reply="text") == [(DOGS, "")]


# text, finish_reason, plain -> texts, fault
TEXTS = [
    (f"Sure! Here is the JSON:\n```json\n{TWO}\n```\nAnything else?", "stop", False, DOGS, ""),
    ('["a red dog", "a blue dog"]', "stop", False, DOGS, ""),
    ('{"prompts": ["1. a red dog", "\\"a blue dog\\""]}', "stop", False, DOGS, ""),
    ("1. a red dog\n\n- a blue dog\n", "stop", True, DOGS, ""),
    ("Prompts:\n\n* a red dog\n* a blue dog", "stop", True, DOGS, ""),
    ("```\na red dog\na blue dog\n```", "stop", True, DOGS, ""),
    ("[1] a red dog\n[2] a blue dog", "stop", True, DOGS, ""),
    (TWO, "stop", True, DOGS, ""),
    ("a red dog\na blue dog", "stop", False, [], "malformed"),
    ("<html><body>busy</body></html>", "stop", True, [], "malformed"),
    ('{"prompts": [a red dog]}', "stop", True, [], "malformed"),
    ('{"prompts": ["a red dog", "a bl', "stop", False, [], "malformed"),
    ('{"prompts": ["a red dog", "a blue dog", "a gr', "length", False, DOGS, ""),
    ('{"prompts": ["a red dog", "a blue dog"', "length", False, DOGS, ""),
    ('{"prompts": ["a red dog", "a blue dog", ', "length", True, DOGS, ""),
    ('{"tags": ["x"], "prompts": ["a red dog", "a blue dog", "a gr', "length", False, DOGS, ""),
    ('```json\n[\n  "a red dog",\n  "a blue dog",\n  "a gr', "length", False, DOGS, ""),
    ('{"prompts": ["a \\"red\\" dog", "a [blue] dog, \\ud83d", "a gr', "length", False,
     ['a "red" dog', "a [blue] dog, \ufffd"], ""),
    (f"{TWO}\nI hope that", "length", False, DOGS, ""),
    ('{"prompts": ["a re', "length", False, [], "truncated"),
    ('{"prompts": [', "length", False, [], "truncated"),
    ("", "length", False, [], "truncated"),
    ("1. a red dog\n2. a blue dog\n3. a gr", "length", True, DOGS, ""),
    ("1. a red dog\n2. a blue dog\n", "length", True, DOGS, ""),
    ("a gr", "length", True, [], "truncated"),
    ("a red dog\na blue dog\na gr", "length", False, [], "truncated"),
    ("I'm sorry, but I can't help", "length", True, [], "refusal"),
    ("I'm sorry, but I can't help with that.", "stop", True, [], "refusal"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reason", "plain", "texts", "fault"), TEXTS)
def test_texts_are_found_and_the_one_that_was_cut_is_none(text, reason, plain, texts, fault):
    assert said(text, reason, plain) == (texts, fault)


@pytest.mark.parametrize(
    ("reply", "fault"),
    [
        (Reply(TWO, "content_filter", False, 0, 0), "refusal"),
        (Reply(TWO, "stop", True, 0, 0), "refusal"),
        (Reply(TWO, "server", False, 0, 0), "server"),
        (Reply(TWO, "context", False, 0, 0), "context"),
    ],
)
def test_what_the_server_did_not_answer_is_no_text(reply, fault):
    assert (reply.fault, texts_of(reply, "prompts", True)) == (fault, ([], fault))


def test_an_answer_without_counts_ends_no_job_now_or_later(tmp_path):
    usage = {"prompt_tokens": 200, "completion_tokens": None}
    server = serving({0: Answer(json.dumps(completed(usage=usage)).encode())})
    assert told(server, tmp_path, "x") == told(serving(), tmp_path, "x") == [(DOGS, "")]


def test_half_a_character_becomes_the_sign_for_one(tmp_path):
    halves = '{"prompts": ["a red dog \\ud83d", "a dog \\ud83d\\ude00"]}'
    read = [(["a red dog \ufffd", "a dog \U0001f600"], "")]
    assert told(serving({0: completion(halves)}), tmp_path, "x") == told(serving(), tmp_path, "x") == read
    body = {"choices": [{"message": {"content": "a \ud83d dog"}, "finish_reason": "stop"}]}
    server = serving({0: Answer(json.dumps(body).encode())}, lines)
    read = [(["a \ufffd dog"], "")]
    assert told(server, tmp_path, "y", reply="text") == told(serving(), tmp_path, "y", reply="text") == read


NONSENSE = ["\n" * 300_000, "[" * 300_000, '["[",' * 100_000, " " * 300_000, "{" * 300_000, "<think>" * 50_000]


@pytest.mark.parametrize("reason", ["stop", "length"])
@pytest.mark.parametrize("text", [*NONSENSE, "[" + "9" * 5000 + "]"])
def test_long_nonsense_is_read_at_once(text, reason):
    assert said(text, reason, True) == ([], "truncated" if reason == "length" else "malformed")
