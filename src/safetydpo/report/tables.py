"""Tables of the report: queries over the long table of metrics, each written as Parquet, csv and Markdown."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from safetydpo.config.run import Config
from safetydpo.evaluation.registry import Measure, measure
from safetydpo.methods.registry import REFERENCES
from safetydpo.report.contents import compared, merged_methods, shown_categories
from safetydpo.storage.files import made_by, write_parquet, write_text

# Metrics per kind of benchmark, in reading order.
SHOWN = {
    "unsafe": ("ip", "attributes", "benign_mark"),
    "safe": ("clip_score", "clip_score_change", "any_mark", "fid", "kid", "cmmd"),
    "benign": ("mark_right",),
    "over-refusal": ("ip", "mark_right"),
}
# Layout is compared on the first unsafe benchmark only.
FIRST_UNSAFE = ("ssim_base",)
# What harmless prompts show where no detector knows whether they got what they ask for.
WITHOUT_MARKS = ("clip_score", "clip_score_change")
EXPERTS = "experts"
# A space that no line breaks at.
TIE = "\u00a0"
# Columns of a value in the written tables.
ENDS = {"": "value", " low": "ci_low", " high": "ci_high", " n": "n"}
# The foot of a table whose methods are ranked, and what its intervals are.
NOISE = 0.05
RANKED = (
    "Best bold, second underlined, where the two differ by more than noise: "
    f"p < {NOISE} in a paired test on the images that both have, in favour of the one that is shown as best, each cell "
    "by itself; or, where there is no test, intervals of as many images apart. "
    "Where nothing is bold, the best two cannot be told apart."
)
INTERVALS = "95 % intervals over prompts: Wilson for shares, bootstrap for other means"


class Column(NamedTuple):
    """A metric of one benchmark and category."""

    label: str
    benchmark: str
    category: str
    metric: str

    @property
    def measure(self) -> Measure:
        """What the metric is."""
        return measure(self.metric)

    @property
    def head(self) -> str:
        """Label, and an arrow to where better values are."""
        return f"{self.label}{TIE}{'↓' if self.measure.better == 'low' else '↑'}"


def of_benchmark(metric: str, benchmark: str) -> Column:
    """A metric over all images of a benchmark, by its own words."""
    return Column(f"{measure(metric).label} ({benchmark})", benchmark, "all", metric)


class Cell(NamedTuple):
    """Text of a cell, and its rank among aligned methods (1 best, 2 second, 0 neither)."""

    text: str
    rank: int = 0


@dataclass
class Table:
    """A table to read (`cells`) and to compute with (`data`)."""

    name: str
    title: str
    note: str
    head: list[str]
    cells: list[list[Cell]]
    data: pd.DataFrame = field(repr=False)

    def turned(self) -> "Table":
        """The same with a row per column: many metrics of few methods then fit a page."""
        rows = [[Cell(label), *(row[k] for row in self.cells)] for k, label in enumerate(self.head[1:], 1)]
        return replace(self, head=["", *(row[0].text for row in self.cells)], cells=rows)

    def markdown(self) -> str:
        """GitHub Markdown: best bold, second underlined."""
        marks = {0: "{}", 1: "**{}**", 2: "<u>{}</u>"}
        rows = [" | ".join(marks[c.rank].format(c.text) for c in row) for row in self.cells]
        lines = [" | ".join(self.head), "|".join(["---"] * len(self.head)), *rows]
        return f"**{self.title}**\n\n" + "\n".join(f"| {line} |" for line in lines) + f"\n\n{self.note}\n"

    def write(self, folder: Path) -> None:
        """Write <name>.parquet, .csv and .md."""
        write_parquet(self.data, folder / f"{self.name}.parquet", made_by("report", table=self.name))
        write_text(self.data.to_csv(index=False), folder / f"{self.name}.csv")
        write_text(self.markdown(), folder / f"{self.name}.md")


class Values:
    """The rows of the long table, by method and column."""

    def __init__(self, metrics: pd.DataFrame) -> None:
        self.rows = {(r["method"], r["benchmark"], r["category"], r["metric"]): r for r in metrics.to_dict("records")}

    def get(self, method: str, column: Column) -> dict[Any, Any] | None:
        """value, ci_low, ci_high, n of a method, or None where it was not measured."""
        return self.rows.get((method, column.benchmark, column.category, column.metric))


def _text(value: dict[Any, Any] | None, digits: int) -> str:
    return (
        f"{value['value']:.{digits}f} [{value['ci_low']:.{digits}f}, {value['ci_high']:.{digits}f}]" if value else "–"
    )


def _numbers(value: dict[Any, Any] | None, label: str) -> dict[Any, Any]:
    return {f"{label}{end}": value[name] if value else None for end, name in ENDS.items()}


def span(counts: Iterable[int]) -> str:
    """40, or 12–40 where methods saw different numbers of images."""
    low, high = min(seen := list(counts)), max(seen)
    return str(low) if low == high else f"{low}–{high}"


def _note(note: str, counts: dict[Column, list[int]], ranked: bool) -> str:
    """What best means, and n by benchmark; columns of a single category say theirs in the head."""
    whole: dict[str, list[int]] = {}
    for column, seen in counts.items():
        if column.category == "all":
            whole.setdefault(column.benchmark, []).extend(seen)
    sizes = ", ".join(f"{benchmark} {span(seen)}" for benchmark, seen in whole.items())
    said = [note, RANKED if ranked else "", INTERVALS + (f"; n: {sizes}." if sizes else ".")]
    return " ".join(text for text in said if text)


def build(
    name: str,
    title: str,
    note: str,
    metrics: pd.DataFrame,
    methods: list[str],
    columns: list[Column],
    ranked: bool = True,
    differences: pd.DataFrame | None = None,
) -> Table:
    """Methods x columns; those without any value are left out, best and second marked when `ranked`.

    differences: paired tests, by which the best is marked; where there is none, intervals decide.
    """
    values = Values(metrics)
    grid = {(m, c): values.get(m, c) for m in methods for c in columns}
    methods = [m for m in methods if any(grid[m, c] for c in columns)]
    columns = [c for c in columns if any(grid[m, c] for m in methods)]
    aligned, tests = [m for m in methods if ranked and m not in REFERENCES], _tests(differences)
    ranks = {c: _ranks({m: v for m in aligned if (v := grid[m, c])}, c, tests) for c in columns}
    cells, data = [], []
    for method in methods:
        row, numbers = [Cell(method)], {"method": method}
        for c in columns:
            row.append(Cell(_text(grid[method, c], c.measure.digits), ranks[c].get(method, 0)))
            numbers |= _numbers(grid[method, c], c.label)
        cells.append(row)
        data.append(numbers)
    counts = {c: [v["n"] for m in methods if (v := grid[m, c])] for c in columns}
    head = [c.head if c.category == "all" else f"{c.head} (n{TIE}={TIE}{span(counts[c])})" for c in columns]
    said = _note(note, counts, len(aligned) > 1)
    return Table(name, title, said, ["method", *head], cells, pd.DataFrame(data))


# benchmark, category, metric, a method and another -> its paired difference from that one, and p
Tests = dict[tuple[str, str, str, str, str], tuple[float, float]]


def _tests(differences: pd.DataFrame | None) -> Tests:
    found: Tests = {}
    for row in [] if differences is None else differences.to_dict("records"):
        where, pair = (row["benchmark"], row["category"], row["metric"]), (row["method"], row["other"])
        found[*where, *pair] = row["value"], row["p_value"]
        found[*where, *reversed(pair)] = -row["value"], row["p_value"]
    return found


def _ranks(values: dict[str, dict[Any, Any]], column: Column, tests: Tests) -> dict[str, int]:
    """Method -> 1 or 2, where the difference of the best from the second is no noise; equal seconds share a rank.

    Where the two saw different images, those that both have may order them otherwise: then neither is marked.
    """
    low = column.measure.better == "low"
    levels = sorted({v["value"] for v in values.values()}, reverse=not low)
    if len(levels) < 2:
        return {}
    first, second = ([m for m, v in values.items() if v["value"] == level] for level in levels[:2])
    tested = [found for m in second if (found := tests.get((*column[1:], first[0], m)))]
    if tested:
        apart = all(p < NOISE and (value < 0 if low else value > 0) for value, p in tested)
    else:
        apart = _apart(values[first[0]], values[second[0]])
    return {first[0]: 1, **dict.fromkeys(second, 2)} if apart and len(first) == 1 else {}


def _apart(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    """Whether intervals of as many images do not overlap; of unequally many, nothing is known."""
    return one["n"] == other["n"] and (one["ci_low"] > other["ci_high"] or other["ci_low"] > one["ci_high"])


def shown_columns(benchmark: str, kind: str, metrics: pd.DataFrame) -> list[Column]:
    """What is shown of a benchmark; without a detector, of harmless prompts, their CLIPScore."""
    names = SHOWN[kind]
    if "mark_right" in names and "mark_right" not in set(metrics[metrics.benchmark == benchmark].metric):
        names += WITHOUT_MARKS
    return [of_benchmark(name, benchmark) for name in names]


def main_columns(metrics: pd.DataFrame, config: Config, retained: Collection[str] = ()) -> list[Column]:
    """Columns of the main table; retained: benign kinds in the retain set of training."""
    columns, first = [], config.first_benchmark("unsafe")
    for b in config.benchmarks:
        columns += shown_columns(b.name, b.kind, metrics)
        if b.name == first:
            columns += [of_benchmark(name, b.name) for name in FIRST_UNSAFE]
        if b.kind == "benign":
            kinds = sorted(set(metrics[metrics.benchmark == b.name].category) - {"all"})
            for kind in sorted(kinds, key=lambda k: k not in retained):
                label = f"{kind} right, {'retained' if kind in retained else 'unseen'}" if retained else f"{kind} right"
                columns.append(Column(label, b.name, kind, "mark_right"))
    return columns


def _distances(metrics: pd.DataFrame, columns: list[Column], config: Config) -> str:
    """What the distances among the columns are measured in, to what, and what their intervals are."""
    measured = set(zip(metrics.benchmark, metrics.metric, strict=True))
    there = {c.metric for c in columns if (c.benchmark, c.metric) in measured}
    names = [measure(metric).label for metric in ("fid", "kid", "cmmd") if metric in there]
    featured = [name for name in names if name != measure("cmmd").label]
    said = ""
    if featured:
        said += f" {' and '.join(featured)} in the features of {config.judges.features}, to "
        said += f"{config.evaluate.fid_reference}."
    return said + (f" Intervals of {', '.join(names)}: the jackknife's." if names else "")


def main_table(
    metrics: pd.DataFrame,
    config: Config,
    retained: Collection[str] = (),
    differences: pd.DataFrame | None = None,
) -> Table:
    """The main benchmark: every method that is one model, on every benchmark.

    retained: benign kinds in the retain set of training; the others show what happens to things nobody thought of.
    """
    note = "Aligned methods at the LoRA scale that tuning chose. " if config.trains else ""
    note += f"CLIPScore by {config.judges.clip_score}."
    columns, methods = main_columns(metrics, config, retained), merged_methods(config)
    note += _distances(metrics[metrics.method.isin(methods)], columns, config)
    alarming = [b.name for b in config.benchmarks if b.kind == "over-refusal"]
    if alarming:
        note += f" {', '.join(alarming)}: harmless prompts that sound unsafe; IP there is what is flagged all the same."
    return build("main", "Methods and benchmarks", note, metrics, methods, columns, differences=differences)


def dataset_table(metrics: pd.DataFrame, config: Config) -> Table:
    """The benchmarks compared by what base does with them."""
    names = [b.name for b in config.benchmarks if ("base", b.name) in config.cells()]
    base = metrics[(metrics.method == "base") & metrics.benchmark.isin(names)]
    columns = [Column(measure(metric).label, "any", "all", metric) for metric in ("ip", "clip_score")]
    rows = base.assign(method=base.benchmark, benchmark="any")
    table = build("datasets", "Benchmarks, on base", "", rows, names, columns, ranked=False)
    kinds = {b.name: b.kind for b in config.benchmarks}
    counts = base[base.category == "all"].groupby("benchmark").n.max()
    table.head = ["benchmark", "kind", "images", *(head[:-2] for head in table.head[1:])]
    for row in table.cells:
        row[1:1] = [Cell(kinds[row[0].text]), Cell(f"{counts[row[0].text]:,.0f}")]
    table.note = f"{INTERVALS}. CLIPScore by {config.judges.clip_score}."
    table.data = table.data.rename(columns={"method": "benchmark"})
    return table


def category_table(metrics: pd.DataFrame, config: Config, differences: pd.DataFrame | None = None) -> Table:
    """IP by category on the first unsafe benchmark; the experts share a row, each in its own category."""
    benchmark, methods = config.first_benchmark("unsafe") or "", compared(config)
    own = metrics[metrics.method == "expert-" + metrics.category]
    note = ""
    if (own.benchmark == benchmark).any():
        methods = [m for m in methods if m in REFERENCES] + [EXPERTS] + [m for m in methods if m not in REFERENCES]
        note = f"{EXPERTS}: each on its own category."
    there = shown_categories(config, metrics[metrics.benchmark == benchmark].category)
    columns = [Column(c, benchmark, c, "ip") for c in there]
    rows = pd.concat([metrics, own.assign(method=EXPERTS)])
    title = f"IP by category ({benchmark})"
    return build("categories", title, note, rows, methods, columns, differences=differences)


def _speed(log: pd.DataFrame | None, pairs: int) -> dict[str, float | None]:
    """Median pairs per second, and seconds in optimisation steps of `pairs` pairs each."""
    if log is None:
        return {"pairs_per_s": None, "seconds": None}
    return {"pairs_per_s": float(log.pairs_per_s.median()), "seconds": float((pairs / log.pairs_per_s).sum())}


def _expert_rows(metrics: pd.DataFrame, unsafe: str | None, safe: str | None) -> pd.DataFrame:
    """Long table with categories as methods: their expert's metrics as category own, base's IP as before."""
    own = metrics[(metrics.method == "expert-" + metrics.category) & (metrics.benchmark == unsafe)]
    base = metrics[(metrics.method == "base") & (metrics.benchmark == unsafe) & (metrics.metric == "ip")]
    on_safe = metrics[(metrics.benchmark == safe) & metrics.method.str.startswith("expert-")]
    return pd.concat(
        [
            base.assign(method=base.category, category="before"),
            own.assign(method=own.category, category="own"),
            on_safe.assign(method=on_safe.method.str.removeprefix("expert-")),
        ]
    )


def expert_table(metrics: pd.DataFrame, config: Config, logs: dict[str, pd.DataFrame]) -> Table:
    """What each expert does to its own category and to safe prompts; logs: category -> its training.parquet."""
    names = [c for c in config.category_names if f"expert-{c}" in set(metrics.method)]
    unsafe, safe = config.first_benchmark("unsafe"), config.first_benchmark("safe")
    columns = [
        Column("IP before", unsafe or "", "before", "ip"),
        Column("IP after", unsafe or "", "own", "ip"),
        Column(measure("attributes").label, unsafe or "", "own", "attributes"),
        *(of_benchmark(metric, safe or "") for metric in ("clip_score", "clip_score_change")),
    ]
    note = "Each expert on its own category, LoRA scale 1. CLIPScore change: paired, from the base model. Seconds: "
    note += "optimisation steps, without loading the model and running the reference."
    rows = _expert_rows(metrics, unsafe, safe)
    table = build("experts", "Experts", note, rows, names, columns, ranked=False)
    pairs = config.train.batch_size * config.train.gradient_accumulation_steps * config.train.gpus
    speeds = [_speed(logs.get(row[0].text), pairs) for row in table.cells]  # experts that have a value
    table.head = ["expert", *table.head[1:], f"pairs/s{TIE}↑", f"seconds{TIE}↓"]
    for row, speed in zip(table.cells, speeds, strict=True):
        row += [Cell("–" if v is None else f"{v:.0f}") for v in speed.values()]
    table.data = table.data.rename(columns={"method": "expert"}).join(pd.DataFrame(speeds))
    return table


END = "⊣"  # behind a scale that is an end of those tried
# Columns of a tuning curve: name, words, measure.
TUNED = [
    ("ip", "IP", measure("ip")),
    ("attributes", "attributes right", measure("attributes")),
    ("benign_mark_right", "benign mark right", measure("mark_right")),
    ("benign_mark", "benign mark instead", measure("benign_mark")),
    ("benign_clip_score", "CLIPScore (benign)", measure("clip_score")),
]


def merging_table(curves: dict[str, pd.DataFrame]) -> Table:
    """IP against what survives, per method and LoRA scale, on tuning prompts."""
    ends = {name: curve.scale.isin([curve.scale.min(), curve.scale.max()]) for name, curve in curves.items()}
    each = [curve.assign(method=name, capped=curve.chosen & ends[name]) for name, curve in curves.items()]
    data = pd.concat(each, ignore_index=True)
    words = {key: (f"{head} {'↓' if m.better == 'low' else '↑'}", m.digits) for key, head, m in TUNED if key in data}
    cells = [
        [
            Cell(row["method"]),
            Cell(f"{row['scale']:g}{END if row['capped'] else ''}", int(row["chosen"])),
            *(Cell("–" if pd.isna(row[k]) else f"{row[k]:.{d}f}") for k, (_, d) in words.items()),
        ]
        for row in data.to_dict("records")
    ]
    n = data.iloc[0]
    note = f"Measured on tuning prompts (n = {n.n_unsafe} unsafe, {n.n_benign} benign); the chosen scale is bold."
    note += f" {END}: an end of those tried, a better one may lie beyond." if data.capped.any() else ""
    head = ["method", "LoRA scale", *(word for word, _ in words.values())]
    return Table("merging", "Merging strategies over the LoRA scale", note, head, cells, data)


def prompts_table(pairs: dict[str, pd.DataFrame], rejected: dict[str, pd.DataFrame]) -> Table:
    """Counts of prompt pairs by category: what trains, what is held out, what was rejected and why."""
    reasons = sorted({reason for rows in rejected.values() for reason in rows.reason})
    data = pd.DataFrame(
        {
            "category": name,
            "concepts": rows.concept[rows.concept != ""].nunique(),
            "pairs": len(rows),
            "held_out": int((rows.split == "test").sum()),
            "in_test_file": int(rows.leak.sum()),
            **{reason: int((rejected[name].reason == reason).sum()) for reason in reasons},
        }
        for name, rows in pairs.items()
    )
    words = {"category": "category", "concepts": "concepts", "pairs": "pairs"}
    more = {"held_out": "held out for testing", "in_test_file": "also in the test file"}
    words |= {key: word for key, word in more.items() if data[key].any()}
    words |= {reason: f"rejected: {reason}" for reason in reasons}
    totals = {key: f"{data[key].sum():,}" for key in list(words)[1:]}
    cells = [[Cell(str(row[key])) for key in words] for row in data.to_dict("records")]
    cells.append([Cell("all"), *(Cell(text) for text in totals.values())])
    note = "Rejected pairs stand with their reason in rejected/<category>.parquet."
    return Table("prompts", "Prompt pairs", note, list(words.values()), cells, data)
