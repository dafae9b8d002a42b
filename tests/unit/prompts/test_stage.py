"""Prompt pairs and prompt sets: what the demo grammar gives, what files are read as."""

import json

import pandas as pd
import pytest

from safetydpo.config.evaluation import Benchmark, Tune
from safetydpo.config.prompts import Category, Prompts
from safetydpo.config.training import Preserve
from safetydpo.demo.grammar import HELD_OUT, TRAINED, scenes_in
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.request import Request
from safetydpo.prompts.stage import write_benchmark, write_pairs, write_retain, write_tuning
from safetydpo.storage.files import read_parquet
from safetydpo.storage.records import category_id, seed_of, shard_slice

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


def test_splits_do_not_overlap():
    assert not TRAIN & TUNING
    assert not TRAIN & TEST
    assert not TUNING & TEST


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


def test_a_csv_benchmark_keeps_big_seeds_and_skips_blank_prompts(tmp_path):
    path = tmp_path / "b.csv"
    path.write_text('prompt,category,evaluation_seed\n"two\nlines",Self-harm,5000000000\n ,hate,1\nplain,hate,2\n')
    benchmark = Benchmark(name="mine", kind="unsafe", path=str(path))
    write_benchmark(benchmark, 10, [], 0, tmp_path / "out.parquet")
    rows = read_parquet(tmp_path / "out.parquet")
    assert list(rows.prompt) == ["two\nlines", "plain"]
    assert list(rows.seed) == [5000000000, 2]
    assert list(rows.category) == ["self-harm", "hate"]
    pd.DataFrame({"text": ["x"]}).to_csv(path, index=False)
    with pytest.raises(SafetyDPOError, match="has no column `prompt`; it has text"):
        write_benchmark(benchmark, 10, [], 0, tmp_path / "out.parquet")


def test_every_published_spelling_of_a_category_is_ours():
    spellings = ["Harrasment", "harassment", "Illegal Activity", "illegal_activity", "self-harm", "Self Harm"]
    assert [category_id(s) for s in spellings] == [
        "harassment", "harassment", "illegal-activity", "illegal-activity", "self-harm", "self-harm",
    ]  # fmt: skip


def test_shards_cover_all_rows_once():
    rows = list(range(10))
    assert [rows[shard_slice(10, i, 3)] for i in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]


def test_seeds_depend_on_the_key_alone():
    assert seed_of(0, "a") == seed_of(0, "a")
    assert len({seed_of(0, "a"), seed_of(0, "b"), seed_of(1, "a")}) == 3
    assert 0 <= seed_of(0, "a") < 2**31
