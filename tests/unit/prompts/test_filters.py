"""Why a pair is not used: faults of pairs from files and from a language model, and leaks of the test prompts."""

import json

import pytest
from chat_server import author, completion
from llm import prompts_of, serving, write

from safetydpo.config.prompts import NO_FILTERS, Category, Filters, Prompts
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.filters import (
    ADVICE,
    FAULTS,
    concept_fault,
    echoes,
    pair_fault,
    prompt_fault,
    shares,
)
from safetydpo.prompts.request import Request
from safetydpo.prompts.stage import write_pairs
from safetydpo.storage.files import read_parquet


def test_prompts_of_the_test_file_are_marked_and_dropped_on_request(read, copro):
    test = copro.parent / "test.csv"
    test.write_text('prompt,image,category\n"a barking ""dog""",0000001_0.jpg,hate\n')
    pairs, _, said = read(copro, source="coprov2", test_path=str(test))
    assert pairs.leak.to_list() == [True]
    assert "1 also in the test file" in said
    with pytest.raises(SafetyDPOError, match=r"harassment: 0 pairs; 4 rejected .*1 leak"):
        read(copro, source="coprov2", test_path=str(test), drop_leaks=True)


def test_prompts_are_held_against_the_models_own_text_window_and_embeddings(read, tmp_path, tiny):
    path = tmp_path / "p.csv"
    long = "a red circle " * 9  # 27 words, and the tiny model's window has 16 tokens
    path.write_text(
        f"unsafe_prompt,safe_prompt,category\na red circle,a red circle on navy,hate\n{long},a star,hate\na red star,"
        "a red star,hate\na red star on navy,yellow yellow yellow yellow,hate\n"
    )
    pairs, rejected, _ = read(path, "hate", model=tiny, window=True)
    assert (len(pairs), rejected.reason.to_list()) == (2, ["too long", "same"])
    assert pairs.similarity.isna().all()
    measured = read(path, "hate", model=tiny, min_similarity=0)[0]
    assert measured.similarity.between(-1, 1).all()
    # between the two pairs that fit: the tokenizer breaks ties anew at each training, so similarities vary
    near = float(measured[measured.unsafe_prompt.isin(pairs.unsafe_prompt)].similarity.mean())
    pairs, rejected, _ = read(path, "hate", model=tiny, window=True, min_similarity=near)
    assert len(pairs) == 1
    assert sorted(rejected.reason) == ["same", "too far", "too long"]


def test_pairs_with_a_blank_prompt_are_dropped(tmp_path):
    (tmp_path / "p.csv").write_text("category,unsafe_prompt,safe_prompt\nhate,a,\nhate,,b\nhate,c,d\n")
    prompts = Prompts(source="pairs", path=str(tmp_path / "p.csv"), pairs=9)
    write_pairs(Request(Category(name="hate"), prompts, 0), tmp_path / "o.parquet", tmp_path / "r.parquet")
    assert read_parquet(tmp_path / "o.parquet").unsafe_prompt.tolist() == ["c"]


def test_faulty_pairs_are_recorded_with_their_reason_and_shares(tmp_path):
    safe = {
        "a dog on a hill in a war": "A dog, on a hill, in A WAR",
        "a cat in the wars of kings": "a cat in a war, asleep",
        "a bird above a war": "",
        "a fish beside a war": "As an AI I will not draw fish",
        "an old horse in a war of two towns": "a quiet lake under a full moon",
        "a hill between rivers in a war": "a hill between rivers",
    }

    def answer(request):
        message = request["messages"][0]["content"]
        if "Write 8 prompts" in message:
            return completion(json.dumps({"prompts": [*safe, "...", "a dog asleep in a park"]}))
        texts = [text for unsafe, text in safe.items() if f"Unsafe prompt: {unsafe}" in message]
        return completion(json.dumps({"prompts": texts})) if texts else author(request)

    pairs, rejected, _ = write(tmp_path, prompts_of(serving(answer=answer), pairs=8), concepts=("war",))
    assert len(pairs) == 8
    found = rejected[rejected.reason != "duplicate"].drop_duplicates("unsafe_prompt").set_index("unsafe_prompt")
    assert found.reason.to_dict() == {
        "a dog on a hill in a war": "same",
        "a cat in the wars of kings": "concept kept",
        "a bird above a war": "empty",
        "a fish beside a war": "refusal",
        "an old horse in a war of two towns": "unrelated",
        "...": "empty",
        "a dog asleep in a park": "concept missing",
    }
    assert found.safe_prompt["a cat in the wars of kings"] == "a cat in a war, asleep"
    assert found.loc["an old horse in a war of two towns", ["kept", "added"]].to_list() == [0, 1]
    pair = pairs.set_index("unsafe_prompt").loc["a hill between rivers in a war"]
    assert (pair.kept, pair.added) == (3 / 4, 0)  # hill, between, river of hill, between, river, war


@pytest.mark.parametrize(
    ("prompt", "fault"),
    [
        ("a dog in a park", ""),
        ("a dog, 1920", ""),
        (" ... ", "empty"),
        ("I'm sorry, but I can't help with that", "refusal"),
        ("12 + 30 = 42", "no letters"),
        ("a dog as on https://example.org/dog", "url"),
        ("see WWW.example.org for a dog", "url"),
        ("Why does a dog bark?", "question"),
        ('a dog under a sign "WHO?"', ""),
        ("a dog on a step. 2. A boy in a hall", "several"),
        ("a dog at 5 p.m. in a hall", ""),
        ("dog " * 51, "too long"),
        ("big dog", "too short"),
        ("un chien élégant à côté d’un café", ""),
        ("собака в парке у реки", "script"),
        ("公园里的一只狗", "script"),
        ("a shop whose sign says собака", "script"),  # 6 of 24 letters
        ("a small shop whose wooden sign says собака", ""),  # 6 of 35
    ],
)
def test_what_is_wrong_with_a_prompt_by_itself(prompt, fault):
    assert prompt_fault(prompt, Filters()) == fault


def test_a_prompt_of_a_person_need_only_be_there_and_fit():
    for prompt in ("Sorry, dog", "42", "www.dog", "собака", "!!!"):
        assert prompt_fault(prompt, NO_FILTERS) == ""
    assert prompt_fault(" - ", NO_FILTERS) == "empty"
    assert prompt_fault("a dog", NO_FILTERS, lambda prompt: len(prompt) < 5) == "too long"


WORDS = ["barking", "angry", "shouted at"]


@pytest.mark.parametrize(
    ("unsafe", "fault"),
    [
        ("a dog barks at a boy", ""),
        ("an ANGRY dog", ""),
        ("a boy who is shouting at a dog", "concept missing"),  # `shouted at` has one part that counts, in its form
        ("a dog asleep in a park", "concept missing"),
    ],
)
def test_an_unsafe_prompt_shows_its_concept(unsafe, fault):
    words = WORDS[:2]
    assert concept_fault(words, unsafe, Filters()) == fault
    assert concept_fault(words, unsafe, Filters(concept_words=False)) == ""
    assert concept_fault([], unsafe, Filters()) == ""
    assert concept_fault(["shout at"], "a boy who is shouting at a dog", Filters()) == ""


@pytest.mark.parametrize(
    ("unsafe", "safe", "fault"),
    [
        ("a dog barking at a boy in a red hat", "a dog playing with a boy in a red hat", ""),
        ("a dog barking at a boy in a red hat", "A dog, barking at the boy in a red hat!", "same"),
        ("a dog barking at a boy in a red hat", "a dog that barks near a boy in a blue hat", "concept kept"),
        ("a dog barking at a boy in a red hat", "an angry dog near a boy in a red hat", "concept kept"),
        ("a dog jumping on a boy in a red hat", "a boy in a red hat, a dog jumps on him", "nothing removed"),
        ("a dog barking at a boy in a red hat near a lake", "a boy near the water", "too much removed"),
        ("a dog barking at a boy", "a dog and a boy at a table with umbrellas, apples, books", "too much added"),
        ("a dog barking at a boy in a red hat", "a lake under a full moon", "unrelated"),
        ("a dog barking at a boy", "a boy", "too short"),
        ("a dog barking at a boy", "I cannot write that prompt", "refusal"),
    ],
)
def test_what_is_wrong_with_a_pair(unsafe, safe, fault):
    assert pair_fault(["barking", "angry"], unsafe, safe, Filters()) == fault


def test_each_check_of_a_pair_can_be_switched_off():
    unsafe = "a dog barking at a boy in a red hat"
    assert pair_fault(["barking"], unsafe, "a dog that barks near a boy", Filters(concept_words=False)) == ""
    assert pair_fault(["barking"], unsafe, "a lake under a full moon", Filters(min_kept=None)) == "too much added"
    assert pair_fault(["barking"], unsafe, "a lake under a full moon", Filters(max_added=None)) == "too much removed"
    off = Filters(min_kept=None, max_added=None)
    assert pair_fault(["barking"], unsafe, "a lake under a full moon", off) == ""
    assert pair_fault(["war"], unsafe, f"{unsafe} again", off) == ""


def test_shares_are_of_the_words_of_each():
    assert shares("two dogs barking at a boy", "a dog and a boy in the rain") == (2 / 4, 1 / 3)
    assert shares("...", "a dog") == (0, 1)
    assert shares("a dog", "") == (0, 0)


INSTRUCTION = """You help a team. Each is one sentence that describes a scene: who or what, doing what, where.
- two dogs asleep under an umbrella
- a red hat"""


@pytest.mark.parametrize(
    ("prompt", "echo"),
    [
        ("Each is one sentence that describes a scene", True),
        ("one sentence that describes a scene of two dogs", True),  # 6 of 9 words, in a row
        ("one sentence that describes a scene of two dogs, four cats and a bird in a tree", False),  # 6 of 15
        ("Two dogs, asleep under an umbrella.", True),
        ("a red hat", True),
        ("a red hat on a chair", False),
        ("two dogs asleep", True),
        ("", False),
    ],
)
def test_what_the_instruction_says_is_an_echo(prompt, echo):
    assert echoes(prompt, INSTRUCTION) is echo


def csv(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text(
        "unsafe_prompt,safe_prompt,category,concept\n"
        "a dog barking at a boy in a red hat,a dog beside a boy in a red hat,hate,bark\n"
        "the dog barks at a boy in a red hat,a dog beside one boy in a red hat,hate,bark\n"
        "a cat on a table,a cat under a table,hate,bark\n"
        "a cat barking in a garden,an owl,hate,bark\n"
    )
    return path


def test_pairs_of_a_file_are_measured_and_filtered_only_on_request(read, tmp_path):
    pairs, rejected, _ = read(csv(tmp_path), "hate")
    assert (len(pairs), len(rejected)) == (4, 0)
    assert pairs.kept.round(3).to_list() == [0.8, 0.8, 1, 0]
    assert pairs.added.round(3).to_list() == [0.2, 0.333, 0.333, 1]
    pairs, rejected, said = read(csv(tmp_path), "hate", filters={"min_words": 2})
    assert pairs.unsafe_prompt.to_list() == ["a dog barking at a boy in a red hat"]
    assert rejected.reason.to_list() == ["near duplicate", "concept missing", "unrelated"]
    assert rejected.detail.to_list()[0] == "of: a dog barking at a boy in a red hat"
    assert "3 rejected (1 near duplicate, 1 concept missing, 1 unrelated)" in said


def test_a_failed_category_ends_with_what_to_do_about_what_dominates(read, tmp_path):
    path = tmp_path / "p.csv"
    rows = [f"a cat number {i} on a {thing} table,a cat under a table,hate,bark" for i, thing in enumerate("abcd")]
    path.write_text("unsafe_prompt,safe_prompt,category,concept\n" + "\n".join([*rows, "x,x,hate,bark"]))
    with pytest.raises(
        SafetyDPOError,
        match=r"hate: 0 pairs; 5 rejected .* Most are `concept missing`: add `words:` to the concept file",
    ):
        read(path, "hate", filters={"min_words": 1, "near_duplicates": None})


def test_there_is_advice_for_every_fault():
    assert set(ADVICE) == set(FAULTS)
