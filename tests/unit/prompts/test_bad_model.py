"""The whole stage over a scripted bad model: what it accepts a person would, and little of that is lost."""

import bad_model
import pandas as pd
import pytest
import yaml
from llm import prompts_of, serving, write


@pytest.fixture(scope="module", params=[("json", 0), ("text", 1)], ids=["json", "text"])
def run(request, tmp_path_factory):
    """Pairs, rejected rows, and the requests that the model got."""
    reply, seed = request.param
    folder = tmp_path_factory.mktemp("bad")
    concepts = {"description": bad_model.DESCRIPTION, "words": bad_model.CONCEPTS}
    (folder / "violence.yaml").write_text(yaml.safe_dump(concepts))
    shown = pd.DataFrame(bad_model.EXAMPLES, columns=["unsafe_prompt", "safe_prompt"]).assign(category="violence")
    shown.to_csv(folder / "examples.csv", index=False)
    server = serving(answer=bad_model.answer)
    llm = {"reply": reply, "seed": seed, "concepts": str(folder), "examples": str(folder / "examples.csv")}
    config = prompts_of(server, llm={**llm, "concurrency": 8}, pairs=300)
    pairs, rejected, _ = write(folder, config, concepts=tuple(bad_model.CONCEPTS))
    return pairs, rejected, server.requests


def test_that_every_pair_is_one_that_a_person_would_accept(run):
    pairs, _, _ = run
    bad = [pair for pair in zip(pairs.unsafe_prompt, pairs.safe_prompt, strict=True) if pair not in bad_model.GOOD]
    assert bad == []


def test_that_no_pair_is_another_with_a_word_changed(run):
    pairs, _, _ = run
    groups = [bad_model.GOOD.get(pair) for pair in zip(pairs.unsafe_prompt, pairs.safe_prompt, strict=True)]
    assert len(set(groups)) == len(groups)


def test_that_nine_of_ten_acceptable_pairs_are_accepted(run):
    pairs, _, requests = run
    acceptable = {group for group, whole in bad_model.offered(requests) if whole}
    got = {bad_model.GOOD.get(pair) for pair in zip(pairs.unsafe_prompt, pairs.safe_prompt, strict=True)}
    assert len(acceptable) >= 25  # of 31 in the script
    assert len(acceptable & got) >= 0.9 * len(acceptable), acceptable - got


def test_that_every_kind_of_fault_was_met(run):
    _, rejected, _ = run
    met = {"echo", "duplicate", "near duplicate", "concept missing", "concept kept", "nothing removed", "unrelated"}
    met |= {"too short", "refusal", "url", "script", "no letters", "empty", "malformed", "question", "several"}
    assert met <= set(rejected.reason)
