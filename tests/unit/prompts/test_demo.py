"""Pairs and prompt sets of the demo world's grammar; a longer set begins with the shorter one."""

import json

import pytest

from safetydpo.config.evaluation import Benchmark, Tune
from safetydpo.config.prompts import Category, Prompts
from safetydpo.config.training import Preserve
from safetydpo.demo.grammar import CONCEPTS, HELD_OUT, TRAINED, scenes_in
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.request import Request
from safetydpo.prompts.stage import write_benchmark, write_pairs, write_retain, write_tuning
from safetydpo.storage.files import read_parquet

CATEGORIES = ["ring", "cross", "grid"]
TRAIN, TUNING, TEST = ({(s.colour, s.shape, s.field) for s in scenes_in(name)} for name in ("train", "tuning", "test"))


def scenes_of(prompts):
    """(colour, shape, field) of prompts of the grammar."""
    found = set()
    for prompt in prompts:
        words = prompt.split()
        found |= {(c, s, f) for c, s, f in TRAIN | TUNING | TEST if c in words and s in words and f in words}
    return found


def demo_pairs(tmp_path, name="ring", n=48, **category):
    request = Request(Category(name=name, **category), Prompts(source="demo", pairs=n), 0)
    write_pairs(request, tmp_path / "pairs.parquet", tmp_path / "rejected.parquet")
    return read_parquet(tmp_path / "pairs.parquet")


def demo(tmp_path, name, n, categories=CATEGORIES, kind="unsafe"):
    write_benchmark(Benchmark(name=name, kind=kind, source="demo"), n, categories, 0, tmp_path / "b.parquet")
    return read_parquet(tmp_path / "b.parquet")


def test_demo_pairs_differ_by_the_mark_alone(tmp_path):
    pairs = demo_pairs(tmp_path)
    assert len(pairs) == pairs.pair_id.nunique() == 48
    assert set(pairs.concept) == set(TRAINED["ring"])
    for row in pairs.itertuples():
        words = row.unsafe_prompt.split()
        i = words.index(row.concept)  # "... with a odalo on ..." loses three words
        assert " ".join(words[: i - 2] + words[i + 1 :]) == row.safe_prompt
    assert scenes_of(pairs.safe_prompt) <= TRAIN


def test_demo_concepts_can_be_chosen(tmp_path):
    assert set(demo_pairs(tmp_path, concepts=["gumet"]).concept) == {"gumet"}
    with pytest.raises(SafetyDPOError, match="no concept zorin; it has odalo, gumet"):
        demo_pairs(tmp_path, concepts=["zorin"])


def test_an_unknown_demo_category_lists_those_there_are(tmp_path):
    with pytest.raises(SafetyDPOError, match="no category violence; it has stripes, checker"):
        demo_pairs(tmp_path, "violence")


def test_benchmarks_keep_to_their_scenes_and_words(tmp_path):
    def made(name, kind="unsafe"):
        write_benchmark(Benchmark(name=name, kind=kind, source="demo"), 60, CATEGORIES, 0, tmp_path / "b.parquet")
        return read_parquet(tmp_path / "b.parquet")

    held_out = {HELD_OUT[c] for c in CATEGORIES}
    trained = {w for c in CATEGORIES for w in TRAINED[c]}
    test, ood = made("test"), made("ood")
    assert {w for p in test.prompt for w in p.split()} & (held_out | trained) == trained
    assert {w for p in ood.prompt for w in p.split()} & (held_out | trained) == held_out
    assert scenes_of(test.prompt) | scenes_of(ood.prompt) <= TEST
    assert test.category.value_counts().to_dict() == {"ring": 20, "cross": 20, "grid": 20}
    assert test.seed.nunique() == 60
    benign = made("benign", "benign")
    assert set(benign.category) == {"leaf", "cloud", "moon"}
    assert json.loads(benign.expected[0])["mark"] == benign.category[0]
    assert {json.loads(e)["mark"] for e in made("safe", "safe").expected} == {"none"}


def test_retain_and_tuning_never_show_the_unretained_mark_or_test_scenes(tmp_path):
    write_retain(Preserve(prompts=40), 0, tmp_path / "r.parquet")
    write_tuning(Tune(unsafe_prompts=30, benign_prompts=10), CATEGORIES, 0, tmp_path / "t.parquet")
    retain, tuning = read_parquet(tmp_path / "r.parquet"), read_parquet(tmp_path / "t.parquet")
    words = {w for p in [*retain.prompt, *tuning.prompt] for w in p.split()}
    assert "leaf" in words
    assert "moon" not in words
    assert not words & set(HELD_OUT.values())
    assert scenes_of(retain.prompt) <= TRAIN
    assert scenes_of(tuning.prompt) <= TUNING
    assert tuning.kind.value_counts().to_dict() == {"unsafe": 30, "benign": 10}


@pytest.mark.parametrize("name", ["test", "ood", "safe", "benign"])
def test_a_longer_benchmark_begins_with_the_shorter_one(tmp_path, name):
    short, long = demo(tmp_path, name, 10), demo(tmp_path, name, 100)
    assert (len(short), len(long)) == (10, 100)
    assert short.equals(long.head(10))


def test_more_pairs_begin_with_the_same_pairs(tmp_path):
    def pairs(n):
        out = tmp_path / "p.parquet"
        write_pairs(Request(Category(name="ring"), Prompts(source="demo", pairs=n), 0), out, tmp_path / "r.parquet")
        return read_parquet(out)

    assert pairs(20).equals(pairs(48).head(20))


def test_what_a_detector_should_see_is_what_the_prompt_says(tmp_path):
    for name in ("test", "ood"):
        for row in demo(tmp_path, name, 30).itertuples():
            expected, words = json.loads(row.expected), row.prompt.split()
            assert expected.keys() == {"colour", "shape", "field"}  # of an unsafe prompt, nothing about the mark
            assert set(expected.values()) <= set(words)
            assert [CONCEPTS[w][0] for w in words if w in CONCEPTS] == [row.category]


def test_a_demo_benchmark_needs_a_demo_category(tmp_path):
    with pytest.raises(SafetyDPOError, match="None of the categories violence is of the demo world"):
        demo(tmp_path, "test", 5, ["violence"])
    with pytest.raises(SafetyDPOError, match="no benchmark i2p; it has test, ood, safe, benign"):
        demo(tmp_path, "i2p", 5)
