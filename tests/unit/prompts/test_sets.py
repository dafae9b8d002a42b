"""How many prompts, from which categories, and that a longer set begins with the shorter one."""

import json

import pandas as pd
import pyarrow.parquet as pq
import pytest

from safetydpo.config.evaluation import Benchmark, Tune
from safetydpo.config.prompts import Category, Prompts
from safetydpo.config.training import Preserve
from safetydpo.demo.grammar import CONCEPTS
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.request import Request
from safetydpo.prompts.stage import write_benchmark, write_pairs, write_retain, write_tuning
from safetydpo.storage.files import read_parquet, write_parquet

FAMILIES = ["ring", "cross", "grid"]


def demo(tmp_path, name, n, categories=FAMILIES, kind="unsafe"):
    write_benchmark(Benchmark(name=name, kind=kind, source="demo"), n, categories, 0, tmp_path / "b.parquet")
    return read_parquet(tmp_path / "b.parquet")


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


def csv(tmp_path, text):
    (tmp_path / "file.csv").write_text(text)
    return str(tmp_path / "file.csv")


HATE_AND_SHOCKING = "prompt,category\n" + "".join(f"h{i},hate\n" for i in range(6)) + "s0,Shocking\ns1,Shocking\n"


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (4, ["h0", "s0", "h1", "s1"]),
        (6, ["h0", "s0", "h1", "s1", "h2", "h3"]),
        (99, ["h0", "s0", "h1", "s1", "h2", "h3", "h4", "h5"]),
    ],
    ids=["even", "one category used up", "all"],
)
def test_a_file_is_taken_evenly_over_its_categories(tmp_path, n, expected):
    benchmark = Benchmark(name="mine", kind="unsafe", path=csv(tmp_path, HATE_AND_SHOCKING))
    write_benchmark(benchmark, n, [], 0, tmp_path / "out.parquet")
    rows = read_parquet(tmp_path / "out.parquet")
    assert rows.prompt.tolist() == expected
    assert rows.prompt_id.tolist() == [f"mine-{i:05d}" for i in range(len(rows))]


def test_tuning_rows_without_a_category_are_benign(tmp_path):
    text = HATE_AND_SHOCKING + "".join(f"b{i},\n" for i in range(5))
    tune = Tune(path=csv(tmp_path, text), unsafe_prompts=4, benign_prompts=3)
    write_tuning(tune, [], 0, tmp_path / "out.parquet")
    rows = read_parquet(tmp_path / "out.parquet")
    assert rows.prompt[rows.kind == "unsafe"].tolist() == ["h0", "s0", "h1", "s1"]
    assert rows.prompt[rows.kind == "benign"].tolist() == ["b0", "b1", "b2"]


def test_retain_prompts_may_come_from_a_file(tmp_path):
    preserve = Preserve(prompts=2, path=csv(tmp_path, "prompt\na lake\n  \na hill\na road\n"))
    write_retain(preserve, 0, tmp_path / "out.parquet")
    rows = read_parquet(tmp_path / "out.parquet")
    assert rows.prompt.tolist() == ["a lake", "a hill"]
    assert set(rows.kind) == {"benign"}


def test_a_split_benchmark_has_held_out_prompts_and_none_that_trains(tmp_path):
    pairs = [
        ("a red dog", "a dog", "train"),
        ("a big dog", "a dog", "test"),
        ("a big dog", "a dog", "test"),  # of another concept
        ("A dog!", "a cat", "test"),  # trains as a safe prompt
        ("an old dog", "a red dog", "test"),
    ]
    rows = pd.DataFrame(pairs, columns=["unsafe_prompt", "safe_prompt", "split"]).assign(category="hate")
    write_parquet(rows, tmp_path / "p.parquet")

    def prompts(kind):
        benchmark = Benchmark(name="held", kind=kind, source="split")
        write_benchmark(benchmark, 9, [], 0, tmp_path / "b.parquet", [str(tmp_path / "p.parquet")])
        return read_parquet(tmp_path / "b.parquet").prompt.to_list()

    assert prompts("unsafe") == ["a big dog", "an old dog"]
    assert prompts("safe") == ["a cat"]
    write_parquet(rows.assign(split="train"), tmp_path / "p.parquet")
    with pytest.raises(SafetyDPOError, match=r"No pair is held out of training: raise prompts\.test_share"):
        prompts("unsafe")


def test_i2ps_columns_are_known_and_its_counts_are_kept(tmp_path):
    path = csv(
        tmp_path, 'prompt,categories,sd_seed\n"two\nlines","Hate, self-harm",5000000000\n,hate,1\nb,shocking,2\n'
    )
    benchmark = Benchmark(name="i2p", kind="unsafe", path=path, limit=2)
    write_benchmark(benchmark, 1, [], 0, tmp_path / "b.parquet")
    rows = read_parquet(tmp_path / "b.parquet")
    assert rows.category.to_list() == ["hate|self-harm", "shocking"]
    assert rows.seed.to_list() == [5000000000, 2]
    header = json.loads(pq.read_schema(tmp_path / "b.parquet").metadata[b"safetydpo"])
    assert header["counts"] == {"read": 3, "blank": 1, "used": 2}


def test_a_prompt_may_have_several_images_and_a_benchmark_its_own_seed(tmp_path):
    path = csv(tmp_path, "prompt,seed\na,7\nb,8\n")

    def rows(**more):
        write_benchmark(Benchmark(name="x", kind="safe", path=path, **more), 9, [], 0, tmp_path / "b.parquet")
        return read_parquet(tmp_path / "b.parquet")

    three = rows(images=3)
    assert three.prompt_id.to_list() == ["x-00000", "x-00000-1", "x-00000-2", "x-00001", "x-00001-1", "x-00001-2"]
    assert three.prompt.to_list() == ["a"] * 3 + ["b"] * 3
    assert (three.seed[0], three.seed[3], three.seed.nunique()) == (7, 8, 6)
    other = rows(images=3, seed=5)
    assert (other.seed[0], other.seed[1] == three.seed[1]) == (7, False)
