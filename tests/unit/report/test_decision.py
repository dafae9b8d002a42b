"""Three sentences and the points of the trade-off, from rows whose numbers are known."""

import pandas as pd
import pytest
import yaml
from snakes import ROOT

from safetydpo.config.loading import load_config
from safetydpo.report.decision import Kept, recommended, sentences, trade_off, what_is_kept

CONFIG = load_config(yaml.safe_load((ROOT / "config/config.yaml").read_text()))


def row(method, benchmark, metric, value, half=0.02):
    cell = {"method": method, "benchmark": benchmark, "category": "all", "metric": metric, "value": value}
    return {**cell, "ci_low": value - half, "ci_high": value + half, "n": 280, "seed": 0}


def difference(method, other, benchmark, metric, value, p, test="mcnemar"):
    return {**row(method, benchmark, metric, value, 0.03), "other": other, "p_value": p, "test": test}


METRICS = pd.DataFrame(
    [
        row("base", "test", "ip", 0.99),
        row("all-single", "test", "ip", 0.04),
        row("merged-mean", "test", "ip", 0.05),
        row("esd-u", "test", "ip", 0.6),
        row("base", "benign", "mark_right", 0.97),
        row("merged-mean", "benign", "mark_right", 0.9),
        row("base", "benign", "clip_score", 80.0),
        row("merged-mean", "benign", "clip_score", 78.0),
        row("merged-mean", "benign", "clip_score_change", -2.0, 0.8),
    ]
)
GAIN = difference("merged-mean", "base", "test", "ip", -0.94, 0.0)
COST = difference("merged-mean", "base", "benign", "mark_right", -0.07, 0.02)
RIVAL = difference("all-single", "merged-mean", "test", "ip", -0.01, 0.68)


def said(*rows, metrics=METRICS, config=CONFIG):
    return sentences(metrics, pd.DataFrame(rows), config)


def test_three_sentences_say_gain_cost_and_how_sure():
    assert said(GAIN, COST, RIVAL) == [
        "Gained: on the unsafe prompts of test, IP, the share of images that are called unsafe, falls from 0.990 to "
        "0.050 with merged-mean, a difference of -0.940 [-0.970, -0.910] (paired, 95 % interval).",
        "Cost: on the harmless prompts of benign, the share of harmless marks drawn right falls from 0.970 to 0.900, a "
        "difference of -0.070 [-0.100, -0.040] (n = 280).",
        "How sure: with n = 280, the gain is more than noise (exact McNemar test, p < 0.001), and all-single, the best "
        "at 0.040, cannot be told apart from merged-mean (p = 0.680); all of it rests on one seed (0) and on the "
        "verdict demo by q16 and demo.",
    ]


# what is changed in a difference -> the sentence, and what it then says
READINGS = {
    "no gain": ((GAIN | {"p_value": 0.05}, COST, RIVAL), 0, "Gained, nothing beyond noise: .* goes from 0.990"),
    "worse": ((GAIN | {"value": 0.1}, COST, RIVAL), 0, "Gained, nothing: .* rises from"),
    "worse, for sure": ((GAIN | {"value": 0.1}, COST, RIVAL), 2, "the loss is more than noise"),
    "neither": ((GAIN | {"value": 0.0, "p_value": 1.0}, COST, RIVAL), 2, "the difference is no more than noise"),
    "noise is no gain": ((GAIN | {"p_value": 0.3}, COST, RIVAL), 2, r"the gain is no more than noise .*p = 0\.300\)"),
    "no cost": ((GAIN, COST | {"p_value": 0.4}, RIVAL), 1, "Cost, nothing beyond noise: .* goes from 0.970"),
    "keeps more": ((GAIN, COST | {"value": 0.02}, RIVAL), 1, "Cost, nothing: .* rises from"),
    "no harmless prompts": ((GAIN, RIVAL), 1, "Cost: not measured"),
    "better": (
        (GAIN, COST, RIVAL | {"p_value": 0.01}),
        2,
        r"all-single, the best at 0\.040, is better than merged-mean by more than noise",
    ),
    "the best itself": (
        (GAIN, COST, RIVAL | {"method": "merged-mean", "other": "all-single", "p_value": 0.01}),
        2,
        r"all-single, second best at 0\.040, is worse than merged-mean by more than noise \(p = 0\.010\)",
    ),
    "third": (
        (GAIN, COST, RIVAL | {"other": "esd-u"}),
        2,
        r"all-single \(0\.040\) has a lower IP and esd-u \(0\.600\) has a higher IP",
    ),
    "alone": ((GAIN, COST), 2, "no other method was compared"),
}


@pytest.mark.parametrize("name", READINGS)
def test_what_is_said_follows_the_tests(name):
    rows, sentence, there = READINGS[name]
    assert pd.Series(said(*rows)).str.contains(there).tolist() == [i == sentence for i in range(3)]


def matrix(*methods, benchmarks=("test",)):
    cells = CONFIG.evaluate.matrix[0].model_copy(update={"methods": list(methods), "benchmarks": list(benchmarks)})
    return CONFIG.model_copy(update={"evaluate": CONFIG.evaluate.model_copy(update={"matrix": [cells]})})


def test_where_nothing_can_be_said_the_reason_is():
    ips = METRICS[METRICS.metric == "ip"]
    unjudged = ips[ips.method != "merged-mean"]
    for metrics, config, reason in (
        (ips, CONFIG, "base and merged-mean have no prompt of test in common on which demo is known"),
        (ips[ips.method != "base"], CONFIG, "no image of base on test has a verdict by demo"),
        (unjudged, CONFIG, "no image of merged-mean on test has a verdict by demo"),
        (ips, matrix("merged-mean"), "base was not rendered on test, the first unsafe benchmark"),
        (
            unjudged,
            matrix("base", "merged-mean", benchmarks=["ood"]),
            "base was not rendered on test, the first unsafe benchmark",
        ),
        (ips, matrix("base"), "no image of an aligned method on test was rendered and has a verdict by demo"),
        (
            ips,
            CONFIG.model_copy(update={"benchmarks": CONFIG.benchmarks[2:]}),
            "no benchmark of the run has unsafe prompts",
        ),
    ):
        assert said(COST, RIVAL, metrics=metrics, config=config) == [f"No decision: {reason}."]


def test_the_runs_own_merge_is_recommended_else_another_else_the_aligned_one_of_lowest_ip():
    assert recommended(METRICS, CONFIG) == "merged-mean"
    assert recommended(METRICS, matrix("base", "merged-co-merge", "merged-mean")) == "merged-mean"  # the first to merge
    assert recommended(METRICS, matrix("base", "all-single", "merged-co-merge")) == "merged-co-merge"
    assert recommended(METRICS, matrix("base", "esd-u", "all-single")) == "all-single"  # 0.6 and 0.04
    assert recommended(METRICS, matrix("base", "esd-u", "uce")) == "esd-u"  # uce has none
    assert recommended(METRICS, matrix("base")) is None
    gain = difference("esd-u", "base", "test", "ip", -0.39, 0.0)
    assert "falls from 0.990 to 0.600 with esd-u" in said(gain, config=matrix("base", "esd-u"))[0]


def test_without_a_detector_what_is_kept_is_clip_score():
    plain = METRICS[METRICS.metric != "mark_right"]
    cost = difference("merged-mean", "base", "benign", "clip_score", -2.0, 0.001, "bootstrap")

    def kept(*rows):
        return what_is_kept(pd.DataFrame(rows, columns=list(COST)), "merged-mean", CONFIG)

    assert kept(cost, COST) == Kept("mark_right", "benign")
    assert kept(cost) == Kept("clip_score", "benign")
    assert kept() is None
    found = said(GAIN, cost, RIVAL, metrics=plain)[1]
    assert "CLIPScore falls from 80.0 to 78.0, a difference of -2.00 [-2.03, -1.97] (n = 280)" in found


def test_the_cost_is_told_by_harmless_prompts_that_the_method_has():
    safe = difference("merged-mean", "base", "safe", "clip_score", -2.0, 0.001, "bootstrap")
    other = COST | {"method": "uce"}  # which alone was rendered on benign ones
    metrics = pd.concat([METRICS, pd.DataFrame([row("base", "safe", "clip_score", 70.0)])])
    metrics = pd.concat([metrics, pd.DataFrame([row("merged-mean", "safe", "clip_score", 68.0)])])
    assert "prompts of safe, CLIPScore falls from 70.0 to 68.0" in said(GAIN, other, safe, RIVAL, metrics=metrics)[1]
    assert said(GAIN, other, RIVAL)[1] == (
        "Cost: not measured, base and merged-mean have no harmless prompts in common."
    )
    assert what_is_kept(pd.DataFrame([other]), "merged-mean", CONFIG) == Kept("mark_right", "benign")


# n of base, of the method, of their difference -> what is said of -0.94 from 0.99 to 0.05, of other images
SHARED = {
    (280, 84, 84): "falls from 0.990 to 0.050 with",
    (84, 280, 84): "falls from 0.990 to 0.050 with",
    (280, 200, 84): "falls from 0.990 (n = 280) to 0.050 (n = 200) with",
}


@pytest.mark.parametrize("sizes", SHARED)
def test_quoted_means_are_those_of_the_images_that_both_have(sizes):
    metrics = METRICS.copy()
    for method, n in zip(("base", "merged-mean"), sizes, strict=False):
        metrics.loc[(metrics.method == method) & (metrics.metric == "ip"), "n"] = n
    # the one that has more images has another mean over all of them
    many = {(280, 84, 84): ("base", 0.7), (84, 280, 84): ("merged-mean", 0.2)}.get(sizes)
    if many:
        metrics.loc[(metrics.method == many[0]) & (metrics.metric == "ip"), "value"] = many[1]
    text = said(GAIN | {"n": sizes[2]}, COST, metrics=metrics)[0]
    assert SHARED[sizes] in text
    assert "(paired, on the 84 images that both have, 95 % interval)" in text


def test_a_rival_of_other_images_is_quoted_on_those_that_both_have():
    metrics = METRICS.copy()
    metrics.loc[(metrics.method == "merged-mean") & (metrics.metric == "ip"), "n"] = 84
    text = said(GAIN, COST, RIVAL | {"n": 84, "value": -0.02}, metrics=metrics)[2]  # 0.05 - 0.02
    assert "all-single, the best at 0.030, on the 84 images that both have, cannot be told apart from" in text


def test_equals_of_the_best_two_are_called_so():
    rows = [row(m, "test", "ip", v) for m, v in (("all-single", 0.03), ("esd-u", 0.05))]
    metrics = pd.concat([METRICS[~METRICS.method.isin(["all-single", "esd-u"])], pd.DataFrame(rows)])
    text = said(GAIN, COST, RIVAL | {"other": "esd-u"}, metrics=metrics)[2]
    assert "all-single (0.030) has a lower IP and esd-u (0.050) has the same IP" in text


@pytest.mark.parametrize(
    ("p", "text"),
    [(0.0499, "p = 0.0499"), (0.0501, "p = 0.050"), (0.05, "p = 0.050"), (0.0009, "p < 0.001"), (1.0, "p = 1.000")],
)
def test_a_p_value_is_told_apart_from_the_level(p, text):
    assert f", {text})" in said(GAIN | {"p_value": p}, COST)[2]


def test_points_of_the_trade_off_are_marks_right_or_shares_of_base():
    marks = trade_off(METRICS, Kept("mark_right", "benign"), CONFIG).set_index("method")
    assert list(marks.index) == ["base", "merged-mean"]  # the others have no benign prompts
    assert marks.loc["merged-mean"].tolist() == pytest.approx([0.9, 0.88, 0.92, 0.05, 0.03, 0.07])
    shares = trade_off(METRICS, Kept("clip_score", "benign"), CONFIG).set_index("method")
    # 1 - 2 / 80, its interval that of the paired change, -2.8 to -1.2
    assert shares.loc["merged-mean"].tolist()[:3] == pytest.approx([0.975, 0.965, 0.985])
    assert shares.loc["base"].tolist()[:3] == [1, 1, 1]
