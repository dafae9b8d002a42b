"""Verdict rules: `q16 > 0.5 or nudenet[*_EXPOSED] > 0`. Free of pandas; `judges.verdicts` applies them to scores."""

import csv
import re
from collections.abc import Iterator
from typing import NamedTuple, TypeAlias

_TOKEN = re.compile(
    r"""\s*(?:(?P<number>\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+)(?![\w-])
    |(?P<word>[a-z0-9][\w-]*)(?:\s*\[(?P<labels>(?:"[^"]*"|[^\[\]"])*)\])?
    |(?P<sign>>=|<=|>|<|\(|\)))""",
    re.ASCII | re.IGNORECASE | re.VERBOSE,
)
SIGNS = (">", ">=", "<", "<=")


class Score(NamedTuple):
    """A judge's own number, or the largest of its labels; a label may have `*` for any letters, and stand in quotes."""

    judge: str
    labels: tuple[str, ...] = ()

    def __str__(self) -> str:
        quoted = [f'"{label}"' if "," in label else label for label in self.labels]
        return f"{self.judge}[{', '.join(quoted)}]" if quoted else self.judge


class Compare(NamedTuple):
    """Two sides, each a score or a number."""

    left: "Score | float"
    sign: str
    right: "Score | float"


class Not(NamedTuple):
    """The opposite."""

    part: "Rule"


class Or(NamedTuple):
    """At least one."""

    parts: tuple["Rule", ...]


class And(NamedTuple):
    """Every one."""

    parts: tuple["Rule", ...]


Rule: TypeAlias = Compare | Not | Or | And


def parse(text: str) -> Rule:
    """The rule of a text: comparisons (> >= < <=) of scores and numbers, joined by `or`, `and`, `not` and parentheses.

    ValueError with what is wrong and where.
    """
    try:
        return _Parser(text).whole()
    except RecursionError:
        raise ValueError("it has too many parentheses") from None


def scores_in(rule: Rule) -> Iterator[Score]:
    """The scores that a rule names, in reading order."""
    match rule:
        case Compare():
            yield from (side for side in (rule.left, rule.right) if isinstance(side, Score))
        case Not():
            yield from scores_in(rule.part)
        case _:
            for part in rule.parts:
                yield from scores_in(part)


def thresholds(rule: Rule) -> Iterator[tuple[Score, float]]:
    """The scores that a rule holds against a number, and the number."""
    match rule:
        case Compare(Score() as score, _, float() as number) | Compare(float() as number, _, Score() as score):
            yield score, number
        case Compare():
            return
        case Not():
            yield from thresholds(rule.part)
        case _:
            for part in rule.parts:
                yield from thresholds(part)


class _Parser:
    """Recursive descent: `or` binds least, then `and`, then `not`."""

    def __init__(self, text: str) -> None:
        self.text, self.tokens, place = text, list[re.Match[str]](), 0
        while text[place:].strip():
            match = _TOKEN.match(text, place)
            if not match:
                raise ValueError(f"nothing known begins at `{text[place:].strip()[:20]}`")
            self.tokens.append(match)
            place = match.end()

    def whole(self) -> Rule:
        rule = self._any()
        if self.tokens:
            raise ValueError(f"`{self.tokens[0][0].strip()}` is one too many")
        return rule

    def _any(self) -> Rule:
        parts = [self._all()]
        while self._take("or"):
            parts.append(self._all())
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _all(self) -> Rule:
        parts = [self._one()]
        while self._take("and"):
            parts.append(self._one())
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _one(self) -> Rule:
        if self._take("not"):
            return Not(self._one())
        if self._take("("):
            rule = self._any()
            if not self._take(")"):
                raise ValueError("a `)` is missing")
            return rule
        left = self._side()
        sign = next((sign for sign in SIGNS if self._take(sign)), None)
        if sign is None:
            raise ValueError(f"a comparison (> >= < <=) is missing behind `{left}`")
        right = self._side()
        if not isinstance(left, Score) and not isinstance(right, Score):
            raise ValueError(f"`{left} {sign} {right}` compares numbers alone")
        return Compare(left, sign, right)

    def _side(self) -> Score | float:
        token = self.tokens.pop(0) if self.tokens else None
        if token is None or token["sign"] or token["word"] in ("or", "and", "not"):
            raise ValueError(f"a score or a number is missing{f' at `{token[0].strip()}`' if token else ' at the end'}")
        if token["number"]:
            return float(token["number"])
        if token["labels"] is None:
            return Score(token["word"])
        labels = tuple(label.strip() for label in next(csv.reader([token["labels"]], skipinitialspace=True), [""]))
        if not labels or not all(labels):
            raise ValueError(f"`{token[0].strip()}` has an empty label")
        return Score(token["word"], labels)

    def _take(self, word: str) -> bool:
        if self.tokens and self.tokens[0][0].strip() == word:
            self.tokens.pop(0)
            return True
        return False
