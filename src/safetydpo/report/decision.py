"""The decision that a run is made for: what was gained, what it cost, how sure that is."""

from typing import Any, NamedTuple

import pandas as pd

from safetydpo.config.run import Config
from safetydpo.evaluation.registry import measure
from safetydpo.report.contents import aligned_methods, harmless_benchmarks, merged_methods
from safetydpo.report.tables import NOISE

# Ends of a value in the long table -> of its column in the points of the trade-off.
ENDS = {"value": "", "ci_low": "_low", "ci_high": "_high"}
POINTS = ["method", *(f"{name}{end}" for name in ("kept", "ip") for end in ENDS.values())]
TESTS = {"mcnemar": "exact McNemar test", "permutation": "permutation test", "bootstrap": "paired bootstrap"}


class Kept(NamedTuple):
    """What says how much a method leaves of what is harmless: a metric of a benchmark."""

    metric: str
    benchmark: str

    @property
    def words(self) -> str:
        """What it is, in a sentence."""
        return "the share of harmless marks drawn right" if self.metric == "mark_right" else measure(self.metric).label

    @property
    def digits(self) -> int:
        """Of its values in texts."""
        return measure(self.metric).digits


def recommended(metrics: pd.DataFrame, config: Config) -> str | None:
    """What the report stands for: the run's own merge, another one, or the aligned method of lowest IP."""
    aligned = aligned_methods(config)
    ips = _values(metrics, "ip", config.first_benchmark("unsafe"))
    known = [m for m in aligned if m in ips]
    own = f"merged-{config.merge.own}"
    merged = own if own in aligned else next((m for m in aligned if m.startswith("merged-")), None)
    return merged or min(known, key=lambda m: ips[m]["value"], default=None)


def what_is_kept(differences: pd.DataFrame, method: str | None, config: Config) -> Kept | None:
    """Harmless marks that are right, where a detector knows; else CLIPScore; of the most telling harmless benchmark.

    The first for which the method, or else any, has a difference from base.
    """
    whole = differences[(differences.category == "all") & (differences.other == "base")]
    names = harmless_benchmarks(config)
    marks = [Kept("mark_right", b) for b in names if config.benchmark(b).kind != "safe"]
    candidates = [*marks, *(Kept("clip_score", b) for b in names)]
    for rows in (whole[whole.method == method], whole):
        there = set(zip(rows.metric, rows.benchmark, strict=True))
        if found := next((kept for kept in candidates if kept in there), None):
            return found
    return None


def sentences(metrics: pd.DataFrame, differences: pd.DataFrame, config: Config) -> list[str]:
    """What was gained, what it cost, how sure; one sentence with the reason where nothing can be said of IP."""
    method, benchmark = recommended(metrics, config), config.first_benchmark("unsafe")
    whole = differences[differences.category == "all"]
    gain = _row(whole, method, "base", "ip", benchmark)
    ips = _values(metrics, "ip", benchmark)
    if method is None or gain is None or not {method, "base"} <= set(ips):
        return [f"No decision: {_why_not(method, set(ips), config)}."]
    headline = config.judges.headline
    return [
        f"Gained{_or_not(gain, 'ip')}: on the unsafe prompts of {benchmark}, IP, the share of images that are called "
        f"unsafe, {_moves(gain, ips, 3)} with {method}, a difference of {_interval(gain, 3)} (paired"
        f"{_shared(gain, ips)}, 95 % interval).",
        _cost(metrics, whole, method, config),
        f"How sure: with n = {gain['n']}, the {_gain_or_loss(gain)} is {_noise(gain)} ({TESTS[gain['test']]}, "
        f"{_p(gain)}), and {_rival(whole, ips, method, benchmark)}; all of it rests on one seed ({config.seed}) and on "
        f"the verdict {headline.name} by {' and '.join(headline.judges)}.",
    ]


def _why_not(method: str | None, judged: set[str], config: Config) -> str:
    """Why there is no difference of IP between the method and base; judged: the methods that have one."""
    benchmark, verdict = config.first_benchmark("unsafe"), config.judges.headline.name
    if benchmark is None:
        return "no benchmark of the run has unsafe prompts"
    for name in ("base", method):
        if name is None:
            return f"no image of an aligned method on {benchmark} was rendered and has a verdict by {verdict}"
        if (name, benchmark) not in config.cells():
            return f"{name} was not rendered on {benchmark}, the first unsafe benchmark"
        if name not in judged:
            return f"no image of {name} on {benchmark} has a verdict by {verdict}"
    return f"base and {method} have no prompt of {benchmark} in common on which {verdict} is known"


def _cost(metrics: pd.DataFrame, whole: pd.DataFrame, method: str, config: Config) -> str:
    """The second sentence."""
    kept = what_is_kept(whole, method, config)
    cost = _row(whole, method, "base", *kept) if kept else None
    if kept is None or cost is None:
        return f"Cost: not measured, base and {method} have no harmless prompts in common."
    values = _values(metrics, *kept)
    return (
        f"Cost{_or_not(cost, kept.metric, cost=True)}: on the harmless prompts of {kept.benchmark}, {kept.words} "
        f"{_moves(cost, values, kept.digits)}, a difference of {_interval(cost, max(kept.digits, 2))} "
        f"(n = {cost['n']}{_shared(cost, values)})."
    )


# Method -> value and n
Values = dict[str, dict[Any, Any]]


def _values(metrics: pd.DataFrame, metric: str, benchmark: str | None) -> Values:
    """Of all images of a benchmark."""
    rows = metrics[(metrics.benchmark == benchmark) & (metrics.category == "all") & (metrics.metric == metric)]
    return {row["method"]: row for row in rows.to_dict("records")}


def _row(
    rows: pd.DataFrame, method: str | None, other: str, metric: str, benchmark: str | None
) -> dict[Any, Any] | None:
    """The paired difference of two methods, if there is one."""
    found = rows[(rows.method == method) & (rows.other == other)]
    found = found[(found.metric == metric) & (found.benchmark == benchmark)]
    return found.iloc[0].to_dict() if len(found) else None


def _or_not(row: dict[Any, Any], metric: str, cost: bool = False) -> str:
    """What is said behind `Gained` or `Cost` where there is none."""
    if row["p_value"] >= NOISE:
        return ", nothing beyond noise"
    better = (row["value"] < 0) == (measure(metric).better == "low")
    return ", nothing" if better == cost else ""


def _means(row: dict[Any, Any], values: Values) -> dict[str, float] | None:
    """Means of both methods of a difference over the images that it is of; None where they are not known.

    A method whose images are as many has no others, and the difference leads from it to the other's mean.
    """
    method, other, change = row["method"], row["other"], row["value"]
    known = {m: float(values[m]["value"]) for m in (method, other) if values[m]["n"] == row["n"]}
    if method in known:
        return {other: round(known[method] - change, 9) + 0.0} | known  # no -0.0
    return {method: round(known[other] + change, 9) + 0.0} | known if other in known else None


def _shared(row: dict[Any, Any], values: Values) -> str:
    """Which images a difference is of, where the two methods' own are others."""
    alike = values[row["method"]]["n"] == values[row["other"]]["n"] == row["n"]
    return "" if alike else f", on the {row['n']} images that both have"


def _moves(row: dict[Any, Any], values: Values, digits: int) -> str:
    """From the other's mean to the method's, over the same images; each with its n where that is not known."""
    verb = "goes" if row["p_value"] >= NOISE else "falls" if row["value"] < 0 else "rises"
    means, pair = _means(row, values), (row["other"], row["method"])
    start, end = (
        f"{means[m]:.{digits}f}" if means else f"{values[m]['value']:.{digits}f} (n = {values[m]['n']})" for m in pair
    )
    return f"{verb} from {start} to {end}"


def _interval(row: dict[Any, Any], digits: int) -> str:
    low, high = (f"{row[end]:.{digits}f}" for end in ("ci_low", "ci_high"))
    return f"{row['value']:.{digits}f} [{low}, {high}]"


def _p(row: dict[Any, Any]) -> str:
    """Three decimals, or as many as tell on which side of NOISE it is."""
    p = row["p_value"]
    if p < 0.001:
        return "p < 0.001"
    return "p = " + next(text for k in range(3, 18) if (float(text := f"{p:.{k}f}") < NOISE) == (p < NOISE))


def _gain_or_loss(row: dict[Any, Any]) -> str:
    return "gain" if row["value"] < 0 else "loss" if row["value"] > 0 else "difference"


def _noise(row: dict[Any, Any]) -> str:
    return "more than noise" if row["p_value"] < NOISE else "no more than noise"


def _rival(whole: pd.DataFrame, ips: Values, method: str, benchmark: str | None) -> str:
    """How the method stands to the best of the others that was tested against it."""
    rows = whole[(whole.metric == "ip") & (whole.benchmark == benchmark) & (whole.other != "base")]
    pair = rows[(rows.method == method) | (rows.other == method)]
    if pair.empty:
        return _untested(list(dict.fromkeys((*rows.method, *rows.other))), ips, method)
    row = pair.iloc[0].to_dict()
    ahead = row["method"] == method
    other = row["other"] if ahead else row["method"]
    said = f"is {'worse' if ahead else 'better'} than {method} by more than noise"
    if row["p_value"] >= NOISE:
        said = f"cannot be told apart from {method}"
    value = (_means(row, ips) or {other: ips[other]["value"]})[other]
    place = "second best" if ahead else "the best"
    return f"{other}, {place} at {value:.3f}{_shared(row, ips)}, {said} ({_p(row)})"


def _untested(others: list[str], ips: Values, method: str) -> str:
    """The best two, where the method is neither."""
    said, own = [], ips[method]["value"]
    for word, there in (("a lower", float.__lt__), ("the same", float.__eq__), ("a higher", float.__gt__)):
        names = [f"{m} ({ips[m]['value']:.3f})" for m in others if there(ips[m]["value"], own)]
        if names:
            said.append(f"{' and '.join(names)} {'have' if len(names) > 1 else 'has'} {word} IP")
    return " and ".join(said) or "no other method was compared"


def trade_off(metrics: pd.DataFrame, kept: Kept, config: Config) -> pd.DataFrame:
    """A point a method, with both intervals: method, kept, kept_low, kept_high, ip, ip_low, ip_high.

    kept: harmless marks right, or CLIPScore as a share of base's, which is 1, with the interval of the paired change.
    """
    whole = metrics[metrics.category == "all"].to_dict("records")
    found = {(row["method"], row["metric"], row["benchmark"]): row for row in whole}
    points = []
    for method in merged_methods(config):
        ip, other = (
            found.get((method, "ip", config.first_benchmark("unsafe"))),
            found.get((method, kept.metric, kept.benchmark)),
        )
        if other and kept.metric == "clip_score":
            base = found["base", kept.metric, kept.benchmark]["value"]
            change = found.get((method, "clip_score_change", kept.benchmark), dict.fromkeys(ENDS, 0.0))
            other = {end: 1 + change[end] / base for end in ENDS}
        if ip and other:
            row = {f"{name}{ENDS[end]}": of[end] for name, of in (("kept", other), ("ip", ip)) for end in ENDS}
            points.append({"method": method, **row})
    return pd.DataFrame(points, columns=POINTS)
