"""Which pairs are held out of training, and the sets of harmless and of tuning prompts."""

import pandas as pd
import pytest

from safetydpo.config.evaluation import Tune
from safetydpo.config.training import Preserve
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.stage import held_out, write_retain, write_tuning
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
    prompts = [f"A dog, number {i}" for i in range(50)]
    assert [held_out(p, 0.5) for p in prompts] == [held_out(p.lower().replace(",", "") + "!", 0.5) for p in prompts]
    assert 0 < sum(held_out(p, 0.5) for p in prompts) < 50
    assert not any(held_out(p, 0.0) for p in prompts)


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
