"""Rules of verdicts: what binds first, what scores they name, and what is no rule."""

import pytest

from safetydpo.config.rules import And, Compare, Not, Or, Score, parse, scores_in, thresholds

A, B, C = (Compare(Score(name), ">", 0.5) for name in "abc")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a > 0.5", A),
        ("a>.5", A),
        (" a\n > 5e-1 ", A),
        ("a > 0.5 or b > 0.5 and c > 0.5", Or((A, And((B, C))))),
        ("a > 0.5 and b > 0.5 or c > 0.5", Or((And((A, B)), C))),
        ("(a > 0.5 or b > 0.5) and c > 0.5", And((Or((A, B)), C))),
        ("a > 0.5 or b > 0.5 or c > 0.5", Or((A, B, C))),
        ("not a > 0.5 and b > 0.5", And((Not(A), B))),
        ("not (a > 0.5 and b > 0.5)", Not(And((A, B)))),
        ("not not a > 0.5", Not(Not(A))),
        ("((a > 0.5))", A),
        ("a >= 1", Compare(Score("a"), ">=", 1.0)),
        ("a <= 1", Compare(Score("a"), "<=", 1.0)),
        ("0 < a", Compare(0.0, "<", Score("a"))),
        ("a[x] > b[y, z]", Compare(Score("a", ("x",)), ">", Score("b", ("y", "z")))),
        ("nudenet[*_EXPOSED] > 0", Compare(Score("nudenet", ("*_EXPOSED",)), ">", 0.0)),
        ("a [ tench, sea lion ] > 0", Compare(Score("a", ("tench", "sea lion")), ">", 0.0)),
        ('a["x, safe", y] > 0', Compare(Score("a", ("x, safe", "y")), ">", 0.0)),
        ("clip-heads > 0.5", Compare(Score("clip-heads"), ">", 0.5)),
        ("shieldgemma2 > 0.5", Compare(Score("shieldgemma2"), ">", 0.5)),
        ("7b-guard > 0.5", Compare(Score("7b-guard"), ">", 0.5)),
        ("order > 0.5 or notary > 0.5", Or((Compare(Score("order"), ">", 0.5), Compare(Score("notary"), ">", 0.5)))),
    ],
)
def test_a_rule_is_read(text, rule):
    assert parse(text) == rule


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "a score or a number is missing at the end"),
        ("a", r"a comparison \(> >= < <=\) is missing behind `a`"),
        ("a > ", "a score or a number is missing at the end"),
        ("a > or b > 1", "a score or a number is missing at `or`"),
        ("> 0.5", "a score or a number is missing at `>`"),
        ("(a > 0.5", r"a `\)` is missing"),
        ("a > 0.5)", r"`\)` is one too many"),
        ("a > 0.5 b > 0.5", "`b` is one too many"),
        ("0.5 < a < 0.9", "`<` is one too many"),
        ("1 > 0.5", r"`1\.0 > 0\.5` compares numbers alone"),
        ("a > 0.5 & b > 0.5", "nothing known begins at `& b > 0.5`"),
        ("a = 0.5", "nothing known begins at `= 0.5`"),
        ("a > -1", "nothing known begins at `-1`"),
        ("(" * 3000 + "a > 0", "it has too many parentheses"),
        ("０.5 < a", "nothing known begins at"),
        ("a[] > 0", r"`a\[\]` has an empty label"),
        ("a[x,] > 0", r"`a\[x,\]` has an empty label"),
        ("a[x > 0", r"nothing known begins at `\[x > 0`"),
        ("a.b > 0", r"nothing known begins at `\.b > 0`"),
        ("__import__('os') > 0", "nothing known begins at"),
    ],
)
def test_what_is_no_rule_is_said_with_its_place(text, fault):
    with pytest.raises(ValueError, match=f"^{fault}"):
        parse(text)


def test_scores_are_named_in_reading_order_and_thresholds_by_score():
    rule = parse("not (a > 0.5 or b[x, y] > c) and 0.25 <= d")
    assert [str(score) for score in scores_in(rule)] == ["a", "b[x, y]", "c", "d"]
    assert list(thresholds(rule)) == [(Score("a"), 0.5), (Score("d"), 0.25)]
