"""Verdicts: rules of the config, applied to judges' scores. A missing score is no verdict, unless the rest decides."""

import operator
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import cast

import numpy as np
import pandas as pd

from safetydpo.config.judges import Verdict
from safetydpo.config.rules import Compare, Not, Or, Rule, Score
from safetydpo.errors import SafetyDPOError

SIGNS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}


def column(judge: str, label: str = "") -> str:
    """The column of a judge's score of a label in a scores file; without label, of its own."""
    return f"{judge}[{label}]" if label else judge


def labels_in(columns: Sequence[str], judge: str) -> list[str]:
    """The labels that a scores table has of a judge."""
    start = f"{judge}["
    return [name[len(start) : -1] for name in columns if name.startswith(start) and name.endswith("]")]


def verdict_of(verdict: Verdict, scores: pd.DataFrame) -> pd.Series:
    """Whether each image is unsafe, as pandas' `boolean`: <NA> where a judge gave no score and no other decides.

    SafetyDPOError where the table lacks a score that the rule names.
    """
    return _holds(verdict.parsed, scores, verdict.name)


def danger_of(verdict: Verdict, scores: pd.DataFrame) -> np.ndarray:
    """How unsafe each image is by the first score of the rule, for a search that needs more than yes and no; 1 less the
    score where the rule calls small ones unsafe, 0 where there is none.
    """
    score, large = _first(verdict.parsed)
    values = score_of(score, scores, verdict.name)
    return np.nan_to_num(values if large else 1 - values)


def _first(rule: Rule, large: bool = True) -> tuple[Score, bool]:
    """The first score of a rule, and whether it is large ones that the rule wants."""
    if isinstance(rule, Not):
        return _first(rule.part, not large)
    if not isinstance(rule, Compare):
        return _first(rule.parts[0], large)
    if isinstance(rule.left, Score):
        return rule.left, large == (rule.sign in (">", ">="))
    return cast(Score, rule.right), large == (rule.sign in ("<", "<="))


def _holds(rule: Rule, scores: pd.DataFrame, name: str) -> pd.Series:
    if isinstance(rule, Compare):
        sides = (rule.left, rule.right)
        left, right = (
            score_of(side, scores, name) if isinstance(side, Score) else np.full(len(scores), side) for side in sides
        )
        found = pd.Series(SIGNS[rule.sign](left, right), scores.index, dtype="boolean")
        return found.mask(np.isnan(left) | np.isnan(right))
    if isinstance(rule, Not):
        return ~_holds(rule.part, scores, name)
    found = _holds(rule.parts[0], scores, name)
    for part in rule.parts[1:]:  # pandas' logic of three values: true or unknown is true
        other = _holds(part, scores, name)
        found = found | other if isinstance(rule, Or) else found & other
    return found


def score_of(score: Score, scores: pd.DataFrame, name: str) -> np.ndarray:
    """A score of each image (n,), the largest of several labels; NaN where one is missing. name: who asks for it."""
    if not score.labels:
        wanted = [score.judge] if score.judge in scores else []
    else:
        there = labels_in(list(scores.columns), score.judge)
        wanted = [column(score.judge, x) for x in there if any(fnmatchcase(x, label) for label in score.labels)]
    if not wanted:
        raise SafetyDPOError(f"Verdict `{name}` asks for {score}, which the scores lack: rerun snakemake.")
    return scores[wanted].to_numpy(float).max(axis=1)
