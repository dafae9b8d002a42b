"""Pairs from a language model: quotas, no waiting, the budget, filters by the model to be aligned, resume."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from chat_server import Answer, author, completion, failure
from llm import prompts_of, serving, write
from snakes import ROOT

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.files import read_parquet


def test_pairs_are_spread_over_concepts_and_differ_by_what_is_unsafe(tmp_path):
    server = serving()
    pairs, _, _ = write(tmp_path, prompts_of(server, pairs=5, llm={"prompts_per_request": 2}))
    assert Counter(pairs.concept) == {"fighting": 3, "war": 2}
    for row in pairs.itertuples():
        assert row.unsafe_prompt == f"{row.safe_prompt} with a {row.concept}"
    counts = [
        int(r["messages"][0]["content"].split("Write ")[1].split()[0]) for r in server.requests if "Vary" in str(r)
    ]
    assert counts == [2, 2, 1]  # of the two concepts in turn


TWO = ["a red dog on a hill with a fighting", "a blue dog at a lake with a fighting"]
# fault -> (answer, reason in rejected/)
FAULTS = {
    "another schema": (completion('{"answer": ["a red dog"]}'), "malformed"),
    "refusal": (completion("I'm sorry, but I can't help with that."), "refusal"),
    "refusal inside": (completion('{"prompts": ["I cannot help with this request."]}'), "refusal"),
    "the service's filter": (failure(400, "Content Exists Risk", "invalid_request_error"), "refusal"),
    "cut at once": (completion('{"prompts": ["a red', "length"), "truncated"),
    "a web page": (Answer(b"<title>busy</title>", content_type="text/html"), "server"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_answers_that_are_no_good_are_recorded_and_asked_again_with_another_seed(tmp_path, name):
    answer, reason = FAULTS[name]
    server = serving({0: answer})
    pairs, rejected, _ = write(tmp_path, prompts_of(server, llm={"concurrency": 2}))
    assert (len(pairs), rejected.reason.to_list()) == (4, [reason])
    seeds = [request["seed"] for request in server.requests]
    assert len(set(seeds)) == len(seeds) == 7


@pytest.mark.parametrize("name", FAULTS)
def test_a_safe_prompt_that_is_no_good_gets_a_second_try(tmp_path, name):
    server = serving({1: FAULTS[name][0]})
    pairs, rejected, _ = write(tmp_path, prompts_of(server, llm={"concurrency": 2}), concepts=("war",))
    assert (len(pairs), len(rejected), len(server.requests)) == (4, 0, 6)


def test_duplicates_are_recorded_and_replaced(tmp_path):
    again = json.dumps({"prompts": [TWO[0], TWO[0].upper() + "!"]})
    server = serving({0: completion(again)})
    pairs, rejected, said = write(tmp_path, prompts_of(server))
    assert len(pairs) == pairs.unsafe_prompt.nunique() == 4
    assert rejected.reason.to_list() == ["duplicate"]
    assert said.endswith("1 rejected (1 duplicate)")
    assert len(server.requests) == 3 + 4  # no counterpart of the second was paid for


def test_n_prompts_a_concept_are_enough(tmp_path):
    pairs, _, _ = write(tmp_path, prompts_of(serving(), pairs=50, llm={"n": 3}))
    assert Counter(pairs.concept) == {"fighting": 3, "war": 3}


def test_answers_in_any_order_make_the_same_pairs(tmp_path):
    found, orders = [], []
    for turn in range(2):
        rng = random.Random(turn)
        server = serving(answer=lambda request, rng=rng: author(request)._replace(delay=rng.random() / 50))
        config = prompts_of(server, pairs=40, llm={"concurrency": 16, "prompts_per_request": 3})
        found.append(write(tmp_path / str(turn), config)[0])
        orders.append([request["messages"][0]["content"] for request in server.requests])
    assert orders[0] != orders[1]
    assert found[0].equals(found[1])
    assert len(found[0]) == 40


def test_a_model_that_repeats_itself_is_given_up_and_the_category_fails_with_counts(tmp_path, capsys):
    server = serving(answer=lambda request: author({**request, "seed": 1}))
    config = prompts_of(server, pairs=2, min_pairs=2, llm={"patience": 3, "prompts_per_request": 1})
    with pytest.raises(SafetyDPOError, match=r"violence: 1 pairs .* rejected \(3 duplicate\); at least 2 to train"):
        write(tmp_path, config, concepts=("war",))
    assert "1 concepts ran dry, after 3 requests in a row without a new pair: war" in capsys.readouterr().out
    assert set(read_parquet(tmp_path / "rejected.parquet").reason) == {"duplicate"}


def test_a_later_request_tells_the_model_what_it_has_written(tmp_path):
    same = json.dumps({"prompts": ["a wet dog on grass with a war"] * 2})
    server = serving({0: completion(same)})
    write(tmp_path, prompts_of(server, pairs=2), concepts=("war",))
    asks = [r["messages"][0]["content"] for r in server.requests if "Write" in r["messages"][0]["content"][:400]]
    assert "These exist already" not in asks[0]
    assert any("These exist already; write others:\n- a wet dog on grass with a war" in ask for ask in asks)


def test_the_budget_is_the_runs_and_what_was_reached_is_said(tmp_path, capsys):
    config = prompts_of(serving(), pairs=20, llm={"token_budget": 3000, "prices": {"input": 10, "output": 1000}})
    pairs, _, _ = write(tmp_path, config)
    said = capsys.readouterr().out
    assert 0 < len(pairs) < 20
    assert "stopped at the token budget" in said
    tokens = [json.loads(line) for line in (tmp_path / "journal/violence.jsonl").read_text().splitlines()]
    sent, written = sum(t["sent"] for t in tokens), sum(t["written"] for t in tokens)
    assert 2000 < sent + written <= 3000
    assert f"{sent:,} tokens sent, {written:,} written, cost {(sent * 10 + written * 1000) / 1e6:.2f}" in said
    other = tmp_path / "journal/hate.jsonl"
    other.write_text(json.dumps({"key": "00", "sent": 10**6, "written": 0}) + "\n")
    server = serving()
    with pytest.raises(SafetyDPOError, match="0 pairs"):  # another category has used it up
        write(tmp_path, prompts_of(server, pairs=20, llm={"token_budget": 3000, "seed": 5}))
    assert server.requests == []


def test_prompts_are_held_against_the_model_to_be_aligned(tmp_path, tiny):
    words = ("a red circle", "a green star", "a blue circle on navy", "a red star " * 9)  # the window has 16 tokens

    def answer(request):
        message = request["messages"][0]["content"]
        found = [text for text in words if f"Unsafe prompt: {text} and a brulo" in message]
        return completion(json.dumps({"prompts": found or [f"{text} and a brulo" for text in words]}))

    def written(name, **changes):
        config = prompts_of(serving(answer=answer), window=None, pairs=4, llm={"patience": 1}, **changes)
        pairs, rejected, _ = write(tmp_path / name, config, concepts=("brulo",), model=tiny)
        return pairs, rejected[rejected.reason != "duplicate"]

    pairs, rejected = written("all")
    assert pairs.safe_prompt.to_list() == list(words[:3])
    assert rejected.reason.to_list() == ["too long"]
    middle = float(pairs.similarity.median())
    fewer, rejected = written("near", min_similarity=middle)
    assert fewer.similarity.to_list() == pairs.similarity[pairs.similarity >= middle].to_list()
    far = rejected[rejected.reason == "too far"]
    assert far.detail.to_list() == [f"cosine {pairs.similarity.min():.3f}"]


def test_a_safe_prompt_that_occurs_as_an_unsafe_one_is_rejected(tmp_path):
    unsafe = completion(json.dumps({"prompts": ["a dog with a whip", "a dog"]}))
    server = serving({0: unsafe, 1: completion('{"prompts": ["A dog."]}'), 2: completion('{"prompts": ["a hill"]}')})
    loose = {"concept_words": False, "min_words": 1, "min_kept": None, "max_added": None}
    pairs, rejected, _ = write(tmp_path, prompts_of(server, pairs=2, filters=loose), concepts=("cruelty",))
    assert rejected[["unsafe_prompt", "reason"]].to_numpy().tolist() == [["a dog with a whip", "safe is unsafe"]]
    assert "a dog" in pairs.unsafe_prompt.to_list()


def test_a_slow_answer_keeps_no_slot_idle(tmp_path):
    """While the first request takes three seconds, all others are sent and answered, but for its own counterparts."""
    times = []

    def answer(request):
        times.append(time.monotonic())
        return author(request)._replace(delay=3.0 if len(times) == 1 else 0.0)

    config = prompts_of(serving(answer=answer), pairs=40, llm={"concurrency": 4, "prompts_per_request": 5})
    pairs, rejected, _ = write(tmp_path, config)
    assert (len(pairs), len(rejected)) == (40, 0)
    assert sum(at < times[0] + 2.9 for at in times) == 8 + 35


def test_the_instruction_says_how_long_a_prompt_may_be(tmp_path, tiny):
    def answer(request):
        safe = "Unsafe prompt:" in request["messages"][0]["content"]
        return completion(json.dumps({"prompts": ["a red circle" if safe else "a red circle with a war"]}))

    def limit(**changes):
        server = serving(answer=answer)
        write(tmp_path / str(changes), prompts_of(server, pairs=1, **changes), concepts=("war",), model=tiny)
        return re.search(r"at most (\d+) words", server.requests[0]["messages"][0]["content"])[1]

    assert limit() == "40"
    assert limit(window=True) == "10"  # three quarters of 16 tokens, less the two that mark its ends


def test_what_the_model_is_shown_as_examples_is_no_pair(tmp_path):
    shown = tmp_path / "shown.csv"
    shown.write_text("category,unsafe_prompt,safe_prompt\nviolence,a grey cat on a hill with a war,a grey cat\n")
    again = json.dumps({"prompts": ["A grey cat on a hill, with a war.", "a black cow at a lake with a war"]})
    server = serving({0: completion(again)})
    pairs, rejected, _ = write(tmp_path, prompts_of(server, pairs=2, llm={"examples": str(shown)}), concepts=("war",))
    assert "- a grey cat on a hill with a war" in server.requests[0]["messages"][0]["content"]
    assert rejected[["unsafe_prompt", "reason"]].to_numpy().tolist() == [
        ["A grey cat on a hill, with a war.", "duplicate"]
    ]
    assert pairs.unsafe_prompt[0] == "a black cow at a lake with a war"


@pytest.mark.parametrize("reply", ["json", "text"])
def test_the_model_may_judge_its_own_prompts(tmp_path, reply):
    """It sees the concept where an unsafe prompt has an odd number, and in the safe one of number 3."""

    def answer(request):
        message = request["messages"][0]["content"]
        if "Does the prompt below ask" not in message:
            if found := re.search(r"^Unsafe prompt: a dog (\d) in a war", message, re.MULTILINE):
                texts = [f"a dog {found[1]} on a hill"]
            else:
                texts = [f"a dog {i} in a war" for i in range(1, 6)]
            return completion(json.dumps({"prompts": texts}) if reply == "json" else "\n".join(texts))
        prompt = re.search(r"^Prompt: (.*)$", message, re.MULTILINE)[1]
        number = int(prompt.split()[2])
        sees = number == 3 or (number % 2 == 1 and "war" in prompt)
        if number == 5:
            return completion("Perhaps.")
        return completion(json.dumps({"shows": sees}) if reply == "json" else "Yes." if sees else "No, it does not.")

    config = prompts_of(
        serving(answer=answer), pairs=5, filters={"judge": True}, llm={"reply": reply, "patience": 1, "concurrency": 3}
    )
    pairs, rejected, _ = write(tmp_path, config, concepts=("war",))
    assert pairs.unsafe_prompt.to_list() == ["a dog 1 in a war"]
    own = rejected[rejected.reason != "duplicate"]
    assert dict(zip(own.unsafe_prompt, own.detail, strict=True)) == {
        "a dog 2 in a war": "sees no concept in the unsafe prompt",
        "a dog 3 in a war": "sees the concept in the safe prompt",
        "a dog 4 in a war": "sees no concept in the unsafe prompt",
        "a dog 5 in a war": "gave no verdict (malformed)",
    }


def test_a_request_beyond_the_context_is_asked_again_without_the_known_prompts(tmp_path):
    def answer(request):
        if "These exist already" in request["messages"][0]["content"]:
            return failure(400, "This model's maximum context length is 100 tokens", "context_length_exceeded")
        return author(request)

    again = json.dumps(
        {"prompts": ["a wet dog on grass with a war", "a wet DOG on grass with a war", "a cow at a lake with a war"]}
    )
    first = iter([completion(again)])
    server = serving(answer=lambda request: next(first, None) or answer(request))
    pairs, rejected, _ = write(tmp_path, prompts_of(server, pairs=3), concepts=("war",))
    assert (len(pairs), rejected.reason.to_list()) == (3, ["duplicate"])
    asked = [r["messages"][0]["content"] for r in server.requests if "Vary" in r["messages"][0]["content"]]
    assert ["These exist already" in message for message in asked] == [False, True, False]


def test_the_rejected_row_shows_the_try_that_its_reason_is_of(tmp_path):
    unsafe = ["a wet dog on grass with a war", "a cow at a lake with a war"]
    safe = iter(["a war on grass", "I cannot help with that."])

    def answer(request):
        if "Unsafe prompt: a wet dog" in request["messages"][0]["content"]:
            return completion(json.dumps({"prompts": [next(safe)]}))
        return author(request)

    server = serving({0: completion(json.dumps({"prompts": unsafe}))}, answer)
    _, rejected, _ = write(tmp_path, prompts_of(server, pairs=2), concepts=("war",))
    assert rejected[["safe_prompt", "reason"]].to_numpy().tolist() == [["I cannot help with that.", "refusal"]]


def test_a_line_a_minute_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("safetydpo.prompts.llm.EVERY", 0.05)
    said = []
    server = serving(latency=0.05)
    write(tmp_path, prompts_of(server, pairs=8), concepts=("war",), tell=said.append)
    assert re.fullmatch(r"violence: \d of 8 pairs, rejected 0, tokens [\d,]+", said[0])


KILLED = """
import sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from llm import prompts_of, write

class Server: url = sys.argv[3]

write(Path(sys.argv[4]), prompts_of(Server, pairs=60, llm={"concurrency": 8, "prompts_per_request": 5}))
"""


def test_kill_9_loses_no_answer_and_the_pairs_are_those_of_an_undisturbed_run(tmp_path):
    server = serving(latency=0.02)
    command = [sys.executable, "-c", KILLED, str(ROOT / "tests"), str(ROOT / "benchmarks"), server.url]
    for stop in (10, 40):
        process = subprocess.Popen(
            [*command, str(tmp_path / "killed")], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        while len(server.requests) < stop:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([*command, str(tmp_path / "killed")], check=True)
    asked = Counter(json.dumps(request) for request in server.requests)
    assert sum(asked.values()) - len(asked) <= 2 * 8  # what was in flight at the two kills
    quiet = serving()
    command[5] = quiet.url
    subprocess.run([*command, str(tmp_path / "quiet")], check=True)
    assert {json.dumps(request) for request in quiet.requests} == set(asked)
    for name in ("pairs", "rejected"):
        killed, whole = (read_parquet(tmp_path / f"{run}/{name}.parquet") for run in ("killed", "quiet"))
        assert killed.equals(whole)
    assert len(whole) == 0
    subprocess.run([*command, str(tmp_path / "quiet")], check=True)
    assert len(quiet.requests) == len(asked)  # a finished stage asks nothing
