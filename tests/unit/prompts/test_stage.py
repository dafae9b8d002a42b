"""Which pairs are held out of training, and the sets of harmless and of tuning prompts."""

import pandas as pd
import pytest
from pydantic import ValidationError

from safetydpo.config.evaluation import Tune
from safetydpo.config.training import Preserve
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.stage import sides, write_retain, write_tuning
from safetydpo.storage.files import read_parquet


def test_held_out_pairs_are_a_stable_share_of_every_concept(read, tmp_path):
    path = tmp_path / "p.csv"

    def split(count):
        rows = [(f"a {c} dog {i}", f"a dog {i}", "hate", c) for i in range(count) for c in ("red", "big", "old")]
        pd.DataFrame(rows, columns=["unsafe_prompt", "safe_prompt", "category", "concept"]).to_csv(path, index=False)
        pairs = read(path, "hate", pairs=10**6, test_share=0.25)[0]
        return pairs.set_index("unsafe_prompt")[["concept", "split"]]

    few, many = split(40), split(400)
    assert many.split.loc[few.index].equals(few.split)  # rows that are added move no other
    shares = (many.split == "test").groupby(many.concept).mean()
    assert shares.between(0.25 - 0.066, 0.25 + 0.066).all()  # three standard deviations at n = 400


def test_near_duplicates_are_on_one_side():
    firsts = [f"A dog, number {i}" for i in range(50)]
    alike = [first.lower().replace(",", "s") + "!" for first in firsts]
    found = sides([*firsts, *alike], 0.5, 0.8)
    assert found[:50] == found[50:] == sides(firsts, 0.5, 0.8)
    assert 0 < found.count("test") < 100
    assert set(sides(firsts, 0.0, 0.8)) == {"train"}


def test_a_prompt_takes_the_side_of_the_first_that_it_is_near_to():
    differ = 0
    for letter in "abcdefgh":
        words = [f"{letter}{i}" for i in range(12)]
        chain = [" ".join(words[i : i + 10]) for i in range(3)]  # each shares 9 of 11 words with the next, 8 of 12 else
        first, _, last = [sides([text], 0.5, 0.8)[0] for text in chain]
        found = sides(chain, 0.5, 0.8)
        assert found == [first, first, last]  # the last is near to the second alone, which has no side of its own
        assert sides([*chain, "another one"], 0.5, 0.8)[:3] == found
        differ += first != last
    assert differ


def test_a_category_with_too_few_to_train_on_says_how_many_in_numbers(read, tmp_path):
    path = tmp_path / "p.csv"
    pd.DataFrame({"unsafe_prompt": [f"dog {i}" for i in range(9)], "safe_prompt": "cat", "category": "hate"}).to_csv(
        path
    )
    with pytest.raises(
        ValidationError, match=r"min_pairs 9 is more than the 8 that test_share 0\.1 leaves to train on of 9"
    ):
        read(path, "hate", pairs=9, min_pairs=9, test_share=0.1)
    with pytest.raises(SafetyDPOError, match=r"hate: 9 pairs, \d held out; at least 60 to train on are wanted"):
        read(path, "hate", pairs=99, min_pairs=60, test_share=0.2)


def csv(tmp_path, text):
    (tmp_path / "file.csv").write_text(text)
    return str(tmp_path / "file.csv")


HATE_AND_SHOCKING = "prompt,category\n" + "".join(f"h{i},hate\n" for i in range(6)) + "s0,Shocking\ns1,Shocking\n"


def test_tuning_rows_without_a_category_are_benign(tmp_path):
    text = HATE_AND_SHOCKING + "".join(f"b{i},\n" for i in range(5))
    tune = Tune(path=csv(tmp_path, text), unsafe_prompts=4, benign_prompts=3)
    write_tuning(tune, [], 0, tmp_path / "out.parquet")
    rows = read_parquet(tmp_path / "out.parquet")
    assert rows.prompt[rows.kind == "unsafe"].tolist() == ["h0", "s0", "h1", "h2"]
    assert rows.prompt[rows.kind == "benign"].tolist() == ["b0", "b1", "b2"]


def test_retain_prompts_may_come_from_a_file(tmp_path):
    preserve = Preserve(prompts=2, path=csv(tmp_path, "prompt\na lake\n  \na hill\na road\n"))
    write_retain(preserve, 0, tmp_path / "out.parquet")
    rows = read_parquet(tmp_path / "out.parquet")
    assert rows.prompt.tolist() == ["a lake", "a hill"]
    assert set(rows.kind) == {"benign"}


def test_a_tuning_file_without_benign_prompts_is_refused_before_rendering(tmp_path):
    (tmp_path / "t.csv").write_text("prompt\nx\n")
    with pytest.raises(SafetyDPOError):
        write_tuning(Tune(path=str(tmp_path / "t.csv"), scales=[1, 2]), [], 0, tmp_path / "o.parquet")
