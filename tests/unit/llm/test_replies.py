"""From the text of a reply to the texts that were asked for."""

import json

import pytest
from chat_server import Answer, completion
from llm import prompts_of, serving, write

from safetydpo.llm.replies import Reply, reply_of, texts_of

TWO = json.dumps({"prompts": ["a red dog with a fighting", "a blue dog with a fighting"]})


def test_json_with_prose_around_it_is_read(tmp_path):
    server = serving({0: completion(f"Sure! Here is the JSON:\n```json\n{TWO}\n```\nAnything else?")})
    pairs, rejected, _ = write(tmp_path, prompts_of(server))
    assert pairs.unsafe_prompt.to_list()[:2] == json.loads(TWO)["prompts"]
    assert (len(server.requests), len(rejected)) == (6, 0)


def completed(**changes):
    """A completion some of whose fields are other than they should be."""
    choice = {"message": {"content": TWO}, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": 4}, **changes}


READ = Reply(TWO, "stop", False, 3, 4)
ODD = {
    "usage null": (
        completed(usage={"prompt_tokens": 200, "completion_tokens": None}),
        READ._replace(sent=200, written=18),
    ),
    "usage a list": (completed(usage=[1]), READ._replace(sent=2, written=18)),
    "counts of no kind": (
        completed(usage={"prompt_tokens": "9", "completion_tokens": -1}),
        READ._replace(sent=2, written=18),
    ),
    "choice a text": (completed(choices=["hello"]), READ._replace(text="", finish_reason="other")),
    "message a list": (completed(choices=[{"message": ["hello"]}]), READ._replace(text="", finish_reason="other")),
    "finish_reason an object": (
        completed(choices=[{"message": {"content": TWO}, "finish_reason": {}}]),
        READ._replace(finish_reason="other"),
    ),
    "finish_reason of ours": (
        completed(choices=[{"message": {"content": TWO}, "finish_reason": "plain"}]),
        READ._replace(finish_reason="other"),
    ),
    "half a character": (
        completed(choices=[{"message": {"content": "a \ud83d"}, "finish_reason": "stop"}]),
        READ._replace(text="a \ufffd"),
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_fields_of_another_kind_are_taken_as_missing(name):
    completion, reply = ODD[name]
    assert len(TWO) == 4 * 18  # of which the estimates are
    assert reply_of(completion, 2) == reply


def test_an_answer_without_counts_ends_no_job_now_or_later(tmp_path):
    usage = {"prompt_tokens": 200, "completion_tokens": None}
    server = serving({0: Answer(json.dumps(completed(usage=usage)).encode())})
    pairs, _, _ = write(tmp_path, prompts_of(server, pairs=2), concepts=("fighting",))
    again = serving()
    assert write(tmp_path, prompts_of(again, pairs=2), concepts=("fighting",))[0].equals(pairs)
    assert again.requests == []


def test_numbers_without_end_and_bottomless_lists_are_faults(tmp_path):
    faults = {0: completion("[" + "9" * 5000 + "]"), 1: Answer(b'{"choices": ' + b"[" * 50_000)}
    config = prompts_of(serving(faults), pairs=2, llm={"concurrency": 2, "retries": 0})
    pairs, rejected, _ = write(tmp_path, config, concepts=("war",))
    assert (len(pairs), rejected.reason.to_list()) == (2, ["malformed", "server"])


def test_half_a_character_becomes_the_sign_for_one(tmp_path):
    halves = '{"prompts": ["a red dog \\ud83d with a war", "a dog \\ud83d\\ude00 with a war"]}'
    pairs, _, _ = write(tmp_path, prompts_of(serving({0: completion(halves)}), pairs=2), concepts=("war",))
    assert pairs.unsafe_prompt.to_list() == ["a red dog \ufffd with a war", "a dog \U0001f600 with a war"]


@pytest.mark.parametrize("text", ["\n" * 300_000, "[" * 300_000, '["[",' * 100_000, " " * 300_000, "{" * 300_000])
def test_long_nonsense_is_malformed_at_once(text):
    assert texts_of(Reply(text, "stop", False, 0, 0), "prompts", True) == ([], "malformed")
