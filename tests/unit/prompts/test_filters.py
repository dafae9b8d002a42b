"""Why a pair is not used: faults of pairs from files and from a language model, and leaks of the test prompts."""

import json

import pytest
from chat_server import author, completion
from llm import prompts_of, serving, write

from safetydpo.config.prompts import Category, Prompts
from safetydpo.errors import SafetyDPOError
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
    near = float(measured.similarity.max()) - 1e-3
    pairs, rejected, _ = read(path, "hate", model=tiny, window=True, min_similarity=near)
    assert len(pairs) == 1
    assert sorted(rejected.reason) == ["same", "too far", "too long"]


def test_pairs_with_a_blank_prompt_are_dropped(tmp_path):
    (tmp_path / "p.csv").write_text("category,unsafe_prompt,safe_prompt\nhate,a,\nhate,,b\nhate,c,d\n")
    prompts = Prompts(source="pairs", path=str(tmp_path / "p.csv"), pairs=9)
    write_pairs(Request(Category(name="hate"), prompts, 0), tmp_path / "o.parquet", tmp_path / "r.parquet")
    assert read_parquet(tmp_path / "o.parquet").unsafe_prompt.tolist() == ["c"]


def test_faulty_pairs_are_recorded_with_their_reason(tmp_path):
    safe = {
        "a dog with a war": "A dog, with WAR",
        "a cat with a war": "the war of a cat",
        "a bird with a war": "",
        "a fish with a war": "As an AI I will not draw fish",
    }

    def answer(request):
        message = request["messages"][0]["content"]
        if "Write 6 prompts" in message:
            return completion(json.dumps({"prompts": [*safe, "...", "a hill with a war"]}))
        texts = [text for unsafe, text in safe.items() if f"Unsafe prompt: {unsafe}" in message]
        return completion(json.dumps({"prompts": texts})) if texts else author(request)

    server = serving(answer=answer)
    pairs, rejected, _ = write(tmp_path, prompts_of(server, pairs=6), concepts=("war",))
    assert len(pairs) == 6
    assert dict(zip(rejected.unsafe_prompt, rejected.reason, strict=True)) == {
        "a dog with a war": "same",
        "a cat with a war": "concept kept",
        "a bird with a war": "empty",
        "a fish with a war": "refusal",
        "...": "empty",
    }
    assert rejected.safe_prompt.to_list()[:2] == ["A dog, with WAR", "the war of a cat"]
