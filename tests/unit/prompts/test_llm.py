"""Pairs from a language model: quotas, rounds, the budget, filters by the model to be aligned, resume."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
from chat_server import author, completion
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
    assert counts == [2, 1, 2]


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
    config = prompts_of(server, pairs=2, min_pairs=2, llm={"rounds": 2, "prompts_per_request": 1})
    with pytest.raises(SafetyDPOError, match=r"violence: 1 pairs .* rejected \(3 duplicate\); at least 2 to train"):
        write(tmp_path, config, concepts=("war",))
    assert "1 concepts ran dry after 2 rounds without a new pair: war" in capsys.readouterr().out
    assert set(read_parquet(tmp_path / "rejected.parquet").reason) == {"duplicate"}


def test_the_second_round_tells_the_model_what_it_has_written(tmp_path):
    same = json.dumps({"prompts": ["a dog with a war"] * 2})
    server = serving({0: completion(same)})
    write(tmp_path, prompts_of(server, pairs=2), concepts=("war",))
    asks = [r["messages"][0]["content"] for r in server.requests if "Write" in r["messages"][0]["content"][:400]]
    assert "These exist already" not in asks[0]
    assert any("These exist already; write others:\n- a dog with a war" in ask for ask in asks)


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
        config = prompts_of(serving(answer=answer), window=None, pairs=4, llm={"rounds": 1}, **changes)
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
    pairs, rejected, _ = write(tmp_path, prompts_of(server, pairs=2), concepts=("cruelty",))
    assert rejected[["unsafe_prompt", "reason"]].to_numpy().tolist() == [["a dog with a whip", "safe is unsafe"]]
    assert "a dog" in pairs.unsafe_prompt.to_list()


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
