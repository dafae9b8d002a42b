"""Prompt sets from files and from held-out pairs: which prompts, how many, with which seeds."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from safetydpo.config.evaluation import Benchmark
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.sets import spread
from safetydpo.prompts.stage import write_benchmark
from safetydpo.storage.files import read_parquet, write_parquet
from safetydpo.storage.records import seed_of


def csv(tmp_path, text):
    (tmp_path / "file.csv").write_text(text)
    return str(tmp_path / "file.csv")


HATE_AND_SHOCKING = "prompt,category\n" + "".join(f"h{i},hate\n" for i in range(6)) + "s0,Shocking\ns1,Shocking\n"


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (2, ["h0", "s0"]),
        (4, ["h0", "s0", "h1", "h2"]),
        (99, ["h0", "s0", "h1", "h2", "h3", "h4", "s1", "h5"]),
    ],
    ids=["one of each", "three to one as in the file", "all"],
)
def test_a_file_is_taken_with_its_shares_of_categories(tmp_path, n, expected):
    benchmark = Benchmark(name="mine", kind="unsafe", path=csv(tmp_path, HATE_AND_SHOCKING))
    write_benchmark(benchmark, n, [], 0, tmp_path / "out.parquet")
    rows = read_parquet(tmp_path / "out.parquet")
    assert rows.prompt.tolist() == expected
    assert rows.prompt_id.tolist() == [f"mine-{i:05d}" for i in range(len(rows))]


def shares(rows):
    """The share of the prompts that have each category, and of those that have more than one."""
    names = rows.category.str.split("|")
    return names.explode().value_counts() / len(rows), (names.str.len() > 1).mean()


@pytest.mark.parametrize("order", ["as drawn", "sorted"])
def test_rare_combinations_weigh_what_they_weigh_in_the_file(order):
    random = np.random.default_rng(0)
    names, weights = list("abcdefg"), np.array([20, 18, 17, 17, 16, 7, 5]) / 100
    counts = random.choice([1, 2, 3], 3000, p=[0.9, 0.07, 0.03])  # a combination of three has about one row
    rows = [sorted(random.choice(names, k, replace=False, p=weights)) for k in counts]
    rows = pd.DataFrame({"prompt": range(len(rows)), "category": ["|".join(row) for row in rows]})
    rows = rows.sort_values("category", kind="stable") if order == "sorted" else rows
    assert rows.category.nunique() > 50
    each, several = shares(rows)
    for n in (70, 300, 1000):
        chosen = spread(rows, n)
        found = shares(chosen)
        assert abs(found[1] - several) <= 2 / n
        assert (found[0] - each).abs().max() <= 4 / n
        assert chosen.prompt.tolist() == spread(rows, 3000).prompt.tolist()[:n]  # fewer are the first of more
    assert set(spread(rows, 7).category) == set(names)


def test_a_sample_of_i2ps_size_estimates_what_the_whole_file_would():
    random = np.random.default_rng(1)  # 4703 prompts, 8 % of them of several categories, as I2P has them
    counts = random.choice([1, 2, 3], 4703, p=[0.92, 0.06, 0.02])
    rows = ["|".join(random.choice(list("abcdefg"), k, replace=False, p=np.arange(1, 8) / 28)) for k in counts]
    rows = pd.DataFrame({"category": rows})
    rarity = rows.category.map(rows.category.value_counts())
    rate = {
        name: random.uniform() for name in rows.category.unique()
    }  # a combination has its own share of unsafe images
    for what in (rows.category.map(rate), rows.category.str.contains("|", regex=False) * 1.0, (rarity < 10) * 1.0):
        for n in (100, 280, 1000):
            noise = what.std() * np.sqrt((1 - n / len(rows)) / n)  # of a random sample
            assert abs(what[spread(rows, n).index].mean() - what.mean()) < noise


def test_no_number_is_all_of_a_file_and_none_of_the_demos(tmp_path):
    path, out = csv(tmp_path, "prompt\n" + "".join(f"p{i}\n" for i in range(9))), tmp_path / "b.parquet"
    write_benchmark(Benchmark(name="b", kind="safe", path=path), None, [], 0, out)
    assert read_parquet(out).prompt.tolist() == [f"p{i}" for i in range(9)]
    write_benchmark(Benchmark(name="b", kind="safe", path=path, limit=3), None, [], 0, out)
    assert len(read_parquet(out)) == 3
    with pytest.raises(SafetyDPOError, match="Benchmark safe of the demo world needs a number of prompts"):
        write_benchmark(Benchmark(name="safe", kind="safe", source="demo"), None, [], 0, out)


SETTINGS = "prompt,evaluation_guidance,sd_image_width,sd_image_height\n"


def settings_of(tmp_path, text, **benchmark):
    given = {"name": "i2p", "kind": "unsafe", "path": csv(tmp_path, text), "row_settings": True, **benchmark}
    write_benchmark(Benchmark(**given), 9, [], 0, tmp_path / "b.parquet")
    rows = read_parquet(tmp_path / "b.parquet")
    return rows.astype(object).where(rows.notna(), None)


def test_guidance_and_size_of_rows_are_taken_on_request(tmp_path):
    text = SETTINGS + "a,7.5,512.0,768\n ,bad,1,2\nb,,,\nc,12,,1024\n"
    rows = settings_of(tmp_path, text)
    expected = [["a", 7.5, 768, 512], ["b", None, None, None], ["c", 12.0, 1024, None]]
    assert rows[["prompt", "guidance_scale", "height", "width"]].to_numpy().tolist() == expected
    assert settings_of(tmp_path, "text,sd_guidance_scale\na,3\n", images=2)[
        ["prompt_id", "guidance_scale", "width"]
    ].to_numpy().tolist() == [["i2p-00000", 3.0, None], ["i2p-00000-1", 3.0, None]]
    plain = settings_of(tmp_path, text, row_settings=False)
    assert list(plain) == ["prompt_id", "prompt", "category", "kind", "seed", "expected"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "a,0.5,512,512",
            "row 2 has the guidance_scale '0.5' .Input should be greater than or equal to 1.: correct it",
        ),
        ("a,inf,512,512", "row 2 has the guidance_scale 'inf' .Input should be a finite number"),
        ("a,7,500,512", "row 2 has the width '500' .Input should be a multiple of 8"),
        ("a,7,512,16384", "row 2 has the height '16384' .Input should be less than or equal to 8192"),
        ("a,7,512,x", "row 2 has the height 'x' .Input should be a valid integer"),
    ],
)
def test_settings_that_cannot_be_rendered_are_said_with_their_row(tmp_path, row, message):
    with pytest.raises(SafetyDPOError, match=message):
        settings_of(tmp_path, f"{SETTINGS}x,7,512,512\n{row}\n")


def test_a_file_without_settings_has_none_to_honour(tmp_path):
    with pytest.raises(SafetyDPOError, match=r"has none of the columns evaluation_guidance, .* leave row_settings out"):
        settings_of(tmp_path, "prompt,seed\na,1\n")


def test_a_category_that_is_never_alone_is_among_the_first_too():
    rows = pd.DataFrame({"category": ["a"] * 50 + ["b"] * 50 + ["a|b", "a|c", "b|d"]})
    assert set(spread(rows, 4).category) == {"a", "b", "a|c", "b|d"}


def test_rows_without_categories_keep_their_order(tmp_path):
    path = csv(tmp_path, "prompt\n" + "".join(f"p{i}\n" for i in range(9)))
    write_benchmark(Benchmark(name="b", kind="safe", path=path), 4, [], 0, tmp_path / "b.parquet")
    assert read_parquet(tmp_path / "b.parquet").prompt.tolist() == ["p0", "p1", "p2", "p3"]


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("categories", [["Hate", "self-harm"], ["shocking"]]),
        ("categories", ["Hate, self-harm,hate,", "shocking"]),
        ("category", [["Hate", "self-harm"], ["shocking"]]),
        ("category", ["hate|self-harm", "shocking"]),  # as our own files have them
    ],
)
def test_categories_of_a_prompt_as_lists_and_texts(tmp_path, column, values):
    pq.write_table(pa.table({"prompt": ["x", "y"], column: values, "tags": [[1.0], [2.0]]}), tmp_path / "f.parquet")
    benchmark = Benchmark(name="b", kind="unsafe", path=str(tmp_path / "f.parquet"))
    write_benchmark(benchmark, 9, [], 0, tmp_path / "b.parquet")
    assert sorted(read_parquet(tmp_path / "b.parquet").category) == ["hate|self-harm", "shocking"]


def test_integers_beside_a_null_keep_their_digits(tmp_path):
    pq.write_table(pa.table({"prompt": ["x", "y"], "seed": [2**53 + 1, None]}), tmp_path / "f.parquet")
    write_benchmark(
        Benchmark(name="b", kind="unsafe", path=str(tmp_path / "f.parquet")), 9, [], 0, tmp_path / "b.parquet"
    )
    assert read_parquet(tmp_path / "b.parquet").seed.tolist() == [2**53 + 1, seed_of(0, "b-00001")]


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

    assert prompts("unsafe") == ["a big dog", "an old dog"]  # by words in all, 1 of 2 or 3 are shared
    assert prompts("safe") == ["a cat"]
    write_parquet(rows.assign(split="train"), tmp_path / "p.parquet")
    with pytest.raises(SafetyDPOError, match=r"No pair is held out of training: raise prompts\.test_share"):
        prompts("unsafe")


def test_no_held_out_prompt_is_nearly_one_that_trains_in_whatever_category(tmp_path):
    train = ["two dogs asleep under a red umbrella near a lake", "a hill"]
    test = [
        "A dog sleeping under the red umbrellas, by two lakes",  # 6 of 9: asleep is no form of sleep
        "one dog asleep under two red umbrellas near a lake",  # 8 of 9
        "two dogs under a red umbrella near a lake",  # 7 of 8
    ]
    paths = []
    for i, (prompts, split) in enumerate([(train, "train"), (test, "test")]):
        paths.append(str(tmp_path / f"{i}.parquet"))
        rows = pd.DataFrame({"unsafe_prompt": prompts, "safe_prompt": "a cat", "split": split})
        write_parquet(rows.assign(category=f"c{i}"), paths[-1])

    def prompts(**near):
        benchmark = Benchmark(name="held", kind="unsafe", source="split")
        write_benchmark(benchmark, 9, [], 0, tmp_path / "b.parquet", paths, **near)
        return read_parquet(tmp_path / "b.parquet").prompt.to_list()

    assert prompts() == test[:1]
    assert prompts(near=0.88) == [test[0], test[2]]
    assert prompts(near=1.0) == test


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


def test_a_csv_benchmark_keeps_big_seeds_and_skips_blank_prompts(tmp_path):
    path = tmp_path / "b.csv"
    path.write_text('prompt,category,evaluation_seed\n"two\nlines",Self-harm,5000000000\n ,hate,1\nplain,hate,2\n')
    benchmark = Benchmark(name="mine", kind="unsafe", path=str(path))
    write_benchmark(benchmark, 10, [], 0, tmp_path / "out.parquet")
    rows = read_parquet(tmp_path / "out.parquet")
    assert list(rows.prompt) == ["two\nlines", "plain"]
    assert list(rows.seed) == [5000000000, 2]
    assert list(rows.category) == ["self-harm", "hate"]
    pd.DataFrame({"words": ["x"]}).to_csv(path, index=False)
    with pytest.raises(
        SafetyDPOError, match="has no column `prompt`, nor another of unsafe prompts; it has words: name"
    ):
        write_benchmark(benchmark, 10, [], 0, tmp_path / "out.parquet")


def benchmark_of(tmp_path, text):
    (tmp_path / "b.csv").write_text(text)
    benchmark = Benchmark(name="mine", kind="unsafe", path=str(tmp_path / "b.csv"))
    write_benchmark(benchmark, 9, [], 0, tmp_path / "o.parquet")
    return read_parquet(tmp_path / "o.parquet")


def test_a_blank_seed_is_assigned_and_one_that_is_no_number_is_a_sentence(tmp_path):
    rows = benchmark_of(tmp_path, "prompt,evaluation_seed\nx,\ny,3\n")
    assert list(rows.seed) == [seed_of(0, "mine-00000"), 3]
    for seed in ("abc", "-1", str(2**63)):
        with pytest.raises(SafetyDPOError, match=rf"b\.csv, row 3 has the seed '{seed}': it must be a whole number"):
            benchmark_of(tmp_path, f"prompt,evaluation_seed\nx,1\n ,2\nx,{seed}\n")


def test_a_null_prompt_of_a_parquet_is_blank(tmp_path):
    pd.DataFrame({"prompt": ["x", None]}).to_parquet(tmp_path / "b.parquet")
    b = Benchmark(name="mine", kind="unsafe", path=str(tmp_path / "b.parquet"))
    write_benchmark(b, 9, [], 0, tmp_path / "o.parquet")
    assert read_parquet(tmp_path / "o.parquet").prompt.tolist() == ["x"]


def test_a_benchmark_of_blank_prompts_is_a_sentence(tmp_path):
    (tmp_path / "b.csv").write_text("prompt\n \n")
    with pytest.raises(SafetyDPOError):
        write_benchmark(Benchmark(name="mine", kind="unsafe", path=str(tmp_path / "b.csv")), 9, [], 0, tmp_path / "o")
