"""Which LoRA scale is chosen, and what is called kept at each."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tiny import CLIP

from safetydpo.config.evaluation import Tune
from safetydpo.config.judges import Judges, Verdict
from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation import tune
from safetydpo.evaluation.stage import tune_scale
from safetydpo.evaluation.tune import choose_scale, curve_row, next_scale, tuning_curve
from safetydpo.storage.files import read_parquet, write_parquet


def test_the_scale_that_is_worth_most_wins():
    """Worth: kept less what of the IP is above the bound, so a scale does not win by one image at it."""
    curve = pd.DataFrame({"scale": [1.0, 0.5, 2.0, 1.5], "ip": [0.02, 0.3, 0.0, 0.01], "kept": [0.8, 0.99, 0.5, 0.8]})
    assert choose_scale(curve, max_ip=0.02) == 1.5  # 0.5 is worth 0.99 - 0.28, 1 as much as 1.5 but is less safe
    assert choose_scale(curve.assign(ip=[0.01, 0.3, 0.0, 0.01]), max_ip=0.02) == 1.0  # 1.5 as good and larger
    # one of 210 images above a bound of 0.01 costs 0.004, not the scale: 0.91 - 0.004 against 0.88
    bound = pd.DataFrame({"scale": [2.83, 3.67], "ip": [3 / 210, 2 / 210], "kept": [0.91, 0.88]})
    assert choose_scale(bound, max_ip=0.01) == 2.83
    # none is safe; kept - (ip - 0.02) is 0.62, 0.71, 0.42, 0.42: not the safest, which ruins half
    assert choose_scale(curve.assign(ip=[0.2, 0.3, 0.1, 0.4]), max_ip=0.02) == 0.5
    assert choose_scale(curve[:1], max_ip=0.001) == 1.0


def test_where_no_scale_is_safe_ties_go_to_the_lower_ip_then_to_the_smaller_scale():
    # kept - ip is 0.6 everywhere, though 0.9 - 0.3 is 0.6000000000000001 in floats and 0.7 - 0.1 is 0.6
    curve = pd.DataFrame({"scale": [0.5, 1.0, 1.5], "ip": [0.3, 0.1, 0.1], "kept": [0.9, 0.7, 0.7]})
    assert choose_scale(curve, max_ip=0.02) == 1.0


@pytest.mark.parametrize("column", ["ip", "kept"])
def test_a_curve_with_nan_chooses_nothing(column):
    curve = pd.DataFrame({"scale": [0.5, 1.0], "ip": [0.3, 0.0], "kept": [1.0, 0.5]})
    curve.loc[0, column] = np.nan
    with pytest.raises(SafetyDPOError, match=r"The tuning curve .* 1 of 6 values are NaN"):
        choose_scale(curve, max_ip=0.02)


def tried(config, ip_and_kept):
    """The scales that are tried where ip_and_kept says both of each."""
    found = []
    while (scale := next_scale(config, found)) is not None:
        found.append(dict(zip(("scale", "ip", "kept"), (scale, *ip_and_kept(scale)), strict=True)))
    return [row["scale"] for row in found]


def test_the_best_scale_is_sought_by_halving_the_ratio_beside_it():
    # safe from 2.5 on, what is kept falls with the scale: sqrt(1 * 16) = 4 is worth 0.96, sqrt(4 * 16) = 8 0.92,
    # sqrt(1 * 4) = 2 0.98 - 0.25, sqrt(2 * 4) = 2.83 0.97: it is the best, and its wider side, by ratio, the lower
    config = Tune(scales=[16, 1], tries=6, max_ip=0.05)
    falling = lambda scale: (0.0 if scale >= 2.5 else 0.3, 1 - scale / 100)  # noqa: E731
    assert tried(config, falling) == [4.0, 8.0, 2.0, 2.83, 2.38, 3.36]
    # upwards while the largest is best; downwards, to the smaller end, while the smallest is
    assert tried(config, lambda scale: (0.3, scale / 100)) == [4.0, 8.0, 11.3, 13.4, 14.6, 15.3]
    assert tried(config, lambda scale: (0.05, 1 - scale / 100)) == [4.0, 8.0, 2.0, 1.41, 1.68, 1.19]
    # an IP that is lowest where images are ruined leads nowhere: 2 is worth 0.93 - 0.05, 1.41 0.97 - 0.1, 8 0.1
    ruined = {4.0: (0.07, 0.25), 8.0: (0.0, 0.1), 2.0: (0.1, 0.93), 1.41: (0.15, 0.97), 2.83: (0.09, 0.6)}
    assert tried(Tune(scales=[1, 16], tries=5, max_ip=0.05), ruined.__getitem__) == [4.0, 8.0, 2.0, 1.41, 2.83]
    assert tried(Tune(scales=[2, 1, 2]), lambda _: (0.0, 1.0)) == [1.0, 2.0]  # those listed


IP, CLIP_SCORE = {None: 0.9, 0.5: 0.3, 1.0: 0.15, 1.5: 0.03}, {None: 33.0, 0.5: 33.0, 1.0: 25.0, 1.5: 15.0}


Q16 = Verdict(name="q16")


@pytest.fixture
def prompts():
    kinds = ["unsafe"] * 100 + ["benign"] * 2
    return pd.DataFrame({"prompt_id": range(102), "prompt": "p", "seed": 0, "kind": kinds, "category": "c"})


def a_judge(clip_score, **facts):
    """Stands in for rendering and judging: one CLIPScore, a share of flagged images; without a LoRA base's."""

    def judged(rows, lora, scale, *_):
        scale = None if lora is None else scale
        flagged = np.arange(len(rows)) < IP[scale] * 100
        return rows.assign(flagged=flagged, clip_score=clip_score[scale], **facts)

    return judged


def test_a_search_leaves_a_curve_in_the_order_of_scales(monkeypatch, prompts):
    for scale, ip in ((4.0, 0.02), (8.0, 0.1)):
        monkeypatch.setitem(IP, scale, ip)
    monkeypatch.setattr(tune, "judged", a_judge({None: 33.0, 2.0: 33.0, 4.0: 30.0, 8.0: 25.0}))
    monkeypatch.setitem(IP, 2.0, 0.2)
    search = Tune(scales=[1, 16], tries=3, max_ip=0.05)
    curve = tuning_curve(prompts, "lora", search, None, None, Q16)  # type: ignore[arg-type]
    assert (curve.scale.tolist(), curve.chosen.tolist()) == ([2.0, 4.0, 8.0], [False, True, False])


def test_without_a_detector_what_is_kept_is_the_share_of_bases_clip_score(monkeypatch, prompts):
    monkeypatch.setattr(tune, "judged", a_judge(CLIP_SCORE))
    curve = tuning_curve(prompts, "lora", Tune(scales=[0.5, 1.0, 1.5]), None, None, Q16)  # type: ignore[arg-type]
    assert curve.ip.tolist() == [0.3, 0.15, 0.03]
    assert curve.kept.tolist() == pytest.approx([1, 25 / 33, 15 / 33])
    assert curve.base_benign_clip_score.tolist() == [33.0] * 3
    # none is safe; kept - (ip - 0.02) is 0.72, 0.63, 0.44: the last scale, safest, has ruined the images
    assert choose_scale(curve, max_ip=0.02) == 0.5
    # at a bound of 0.15 the first is worth 0.85, the second 0.76; where the first's IP is 0.5, only 0.65
    assert choose_scale(curve, max_ip=0.15) == 0.5
    assert choose_scale(curve.assign(ip=[0.5, 0.15, 0.03]), max_ip=0.15) == 1.0


def test_shares_that_a_detector_knows_are_what_is_kept_and_need_no_base(monkeypatch, prompts):
    monkeypatch.setattr(tune, "judged", a_judge(CLIP_SCORE, attributes=0.8, mark_right=0.5))
    monkeypatch.setitem(CLIP_SCORE, None, float("nan"))
    curve = tuning_curve(prompts, "lora", Tune(scales=[0.5, 1.0]), None, None, Q16)  # type: ignore[arg-type]
    assert curve.kept.tolist() == pytest.approx([0.65, 0.65])
    assert "base_benign_clip_score" not in curve


def test_a_base_that_draws_nothing_of_its_prompts_is_said(monkeypatch, prompts, tiny):
    monkeypatch.setattr(tune, "judged", a_judge(CLIP_SCORE | {None: -3.9}))
    with pytest.raises(SafetyDPOError, match=r"benign tuning prompts is -3\.90, so what a LoRA keeps .* not known"):
        tuning_curve(prompts, "lora", Tune(scales=[0.5, 1.0]), tiny, None, Q16)  # type: ignore[arg-type]


def test_an_image_without_a_verdict_is_neither_safe_nor_unsafe(capsys):
    scores = pd.DataFrame({"kind": ["unsafe"] * 4 + ["benign"], "category": "c", "clip_score": 30.0})
    flagged = pd.Series([True, None, False, False, None], dtype="boolean")
    row = curve_row(scores.assign(flagged=flagged), 0.5)
    assert (row["ip"], row["n_unsafe"]) == (pytest.approx(1 / 3), 4)
    assert capsys.readouterr().out == "scale 0.5: 1 of 4 unsafe images have no verdict, ip is of the others\n"


def test_without_any_verdict_no_scale_is_chosen(monkeypatch, prompts):
    def judged(rows, *_):
        return rows.assign(flagged=pd.Series([None] * len(rows), dtype="boolean"), clip_score=30.0)

    monkeypatch.setattr(tune, "judged", judged)
    mine = Verdict(name="mine", rule="vlm > 0.5 or llavaguard > 0.5")
    with pytest.raises(SafetyDPOError, match=r"^tune: `mine` gives no image .* look at the answers of vlm and llavag"):
        tuning_curve(prompts, "lora", Tune(scales=[0.5, 1.0]), None, None, mine)  # type: ignore[arg-type]


class MeanEyes:
    """CLIPScore is the mean of a picture's values; Q16 calls every second image unsafe."""

    def __init__(self, *_, journals):
        assert journals == "answers"

    def look(self, images, prompts):
        return [{"q16": 0.1 + 0.8 * (i % 2 == 0), "clip_score": float(x.mean())} for i, x in enumerate(images)]


def test_a_lora_of_zeros_keeps_all_that_base_has(tmp_path, monkeypatch, tiny):
    """Whatever the scale, its images are base's: kept is 1, the smallest scale is chosen."""
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
    (tmp_path / "lora").mkdir()
    lora = {f"{layer}.lora_A.weight": torch.ones(1, 16), f"{layer}.lora_B.weight": torch.zeros(16, 1)}
    save_file(lora, tmp_path / "lora/pytorch_lora_weights.safetensors")
    rows = {"prompt": ["a red circle", "a blue star"], "seed": [1, 2], "kind": ["unsafe", "benign"]}
    more = {"prompt_id": ["a", "b"], "category": ["ring", ""], "expected": ["{}", "{}"]}
    write_parquet(pd.DataFrame(rows | more), tmp_path / "prompts.parquet")
    monkeypatch.setattr("safetydpo.evaluation.stage.Eyes", MeanEyes)
    paths = tmp_path / "curve.parquet", tmp_path / "scale.json"
    config = Tune(scales=[1.0, 0.5, 1.0])
    tune_scale(tmp_path / "prompts.parquet", tmp_path / "lora", tiny, Judges(**CLIP), config, *paths, "answers")
    curve = read_parquet(paths[0])
    assert curve.scale.tolist() == [0.5, 1.0]
    assert curve.kept.tolist() == [1.0, 1.0]
    assert curve.ip.tolist() == [1, 1]  # by the rule q16 > 0.5: the first image is of the unsafe prompt
    assert paths[1].read_text() == '{"scale": 0.5}\n'
