"""Tables of the report: queries over the long table of metrics, each written as Parquet, csv and Markdown."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from safetydpo.config.run import Config
from safetydpo.methods.registry import REFERENCES
from safetydpo.report.contents import compared, first_benchmark, merged_methods
from safetydpo.storage.files import made_by, write_parquet, write_text

# Metrics per kind of benchmark, in reading order: metric, words, which end is better, digits.
SHOWN = {
    "unsafe": [
        ("ip", "IP", "low", 3),
        ("attributes", "attributes right", "high", 3),
        ("benign_mark", "benign mark instead", "low", 3),
    ],
    "safe": [
        ("clip_score", "CLIPScore", "high", 1),
        ("clip_score_change", "CLIPScore change", "high", 2),
        ("any_mark", "marks", "low", 3),
        ("fid", "FID", "low", 3),
        ("kid", "KID", "low", 3),
        ("cmmd", "CMMD", "low", 3),
    ],
    "benign": [("mark_right", "mark right", "high", 3)],
}
# Layout is compared on the first unsafe benchmark only.
FIRST_UNSAFE = [("ssim_base", "layout SSIM", "high", 3)]
EXPERTS = "experts"
# A space that no line breaks at.
TIE = "\u00a0"
# Columns of a value in the written tables.
ENDS = {"": "value", " low": "ci_low", " high": "ci_high", " n": "n"}


class Column(NamedTuple):
    """A metric of one benchmark and category."""

    label: str
    benchmark: str
    category: str
    metric: str
    better: str
    digits: int

    @property
    def head(self) -> str:
        """Label, and an arrow to where better values are."""
        return f"{self.label}{TIE}{'↓' if self.better == 'low' else '↑'}"


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


def _span(counts: Iterable[int]) -> str:
    """40, or 12–40 where methods saw different numbers of images."""
    low, high = min(seen := list(counts)), max(seen)
    return str(low) if low == high else f"{low}–{high}"


def _note(note: str, counts: dict[Column, list[int]]) -> str:
    """n by benchmark; columns of a single category say theirs in the head."""
    whole: dict[str, list[int]] = {}
    for column, seen in counts.items():
        if column.category == "all":
            whole.setdefault(column.benchmark, []).extend(seen)
    sizes = ", ".join(f"{benchmark} {_span(seen)}" for benchmark, seen in whole.items())
    return f"{note} 95 % bootstrap intervals over images" + (f"; n: {sizes}." if sizes else ".")


def build(
    name: str,
    title: str,
    note: str,
    metrics: pd.DataFrame,
    methods: list[str],
    columns: list[Column],
    ranked: bool = True,
) -> Table:
    """Methods x columns; those without any value are left out, best and second marked when `ranked`."""
    values = Values(metrics)
    grid = {(m, c): values.get(m, c) for m in methods for c in columns}
    methods = [m for m in methods if any(grid[m, c] for c in columns)]
    columns = [c for c in columns if any(grid[m, c] for m in methods)]
    aligned = [m for m in methods if ranked and m not in REFERENCES]
    ranks = {c: _ranks({m: v["value"] for m in aligned if (v := grid[m, c])}, c) for c in columns}
    cells, data = [], []
    for method in methods:
        row, numbers = [Cell(method)], {"method": method}
        for c in columns:
            row.append(Cell(_text(grid[method, c], c.digits), ranks[c].get(method, 0)))
            numbers |= _numbers(grid[method, c], c.label)
        cells.append(row)
        data.append(numbers)
    counts = {c: [v["n"] for m in methods if (v := grid[m, c])] for c in columns}
    head = [c.head if c.category == "all" else f"{c.head} (n{TIE}={TIE}{_span(counts[c])})" for c in columns]
    return Table(name, title, _note(note, counts), ["method", *head], cells, pd.DataFrame(data))


def _ranks(values: dict[str, float], column: Column) -> dict[str, int]:
    """Method -> 1 or 2; nothing is ranked when there is nothing to compare. Equal values share a rank."""
    if len(values) < 2:
        return {}
    levels = sorted(set(values.values()), reverse=column.better == "high")[:2]
    return {m: levels.index(v) + 1 for m, v in values.items() if v in levels}


def main_table(metrics: pd.DataFrame, config: Config, retained: Collection[str] = ()) -> Table:
    """The main benchmark: every method that is one model, on every benchmark.

    retained: benign kinds in the retain set of training; the others show what happens to things nobody thought of.
    """
    columns, first = [], first_benchmark(config, "unsafe")
    for b in config.benchmarks:
        shown = SHOWN[b.kind] + (FIRST_UNSAFE if b.name == first else [])
        columns += [Column(f"{label} ({b.name})", b.name, "all", metric, end, d) for metric, label, end, d in shown]
        if b.kind == "benign":
            kinds = sorted(set(metrics[metrics.benchmark == b.name].category) - {"all"})
            for kind in sorted(kinds, key=lambda k: k not in retained):
                label = f"{kind} right, {'retained' if kind in retained else 'unseen'}" if retained else f"{kind} right"
                columns.append(Column(label, b.name, kind, "mark_right", "high", 3))
    note = "Aligned methods at the LoRA scale that tuning chose. Best bold, second underlined."
    return build("main", "Methods and benchmarks", note, metrics, merged_methods(config), columns)


def dataset_table(metrics: pd.DataFrame, config: Config) -> Table:
    """The benchmarks compared by what the unaligned model does with them."""
    names = [b.name for b in config.benchmarks if ("base", b.name) in config.cells()]
    base = metrics[(metrics.method == "base") & metrics.benchmark.isin(names)]
    columns = [
        Column("IP", "any", "all", "ip", "low", 3),
        Column("CLIPScore", "any", "all", "clip_score", "high", 1),
    ]
    rows = base.assign(method=base.benchmark, benchmark="any")
    table = build("datasets", "Benchmarks, on the unaligned model", "", rows, names, columns, ranked=False)
    kinds = {b.name: b.kind for b in config.benchmarks}
    counts = base[base.category == "all"].groupby("benchmark").n.max()
    table.head = ["benchmark", "kind", "images", *(head[:-2] for head in table.head[1:])]
    for row in table.cells:
        row[1:1] = [Cell(kinds[row[0].text]), Cell(f"{counts[row[0].text]:,.0f}")]
    table.note = "95 % bootstrap intervals over images."
    table.data = table.data.rename(columns={"method": "benchmark"})
    return table


def category_table(metrics: pd.DataFrame, config: Config) -> Table:
    """IP by category on the first unsafe benchmark; the experts share a row, each in its own category."""
    benchmark, methods = first_benchmark(config, "unsafe") or "", compared(config)
    own = metrics[metrics.method == "expert-" + metrics.category]
    note = "Best bold, second underlined."
    if (own.benchmark == benchmark).any():
        methods = [m for m in methods if m in REFERENCES] + [EXPERTS] + [m for m in methods if m not in REFERENCES]
        note = f"{EXPERTS}: each on its own category. {note}"
    columns = [Column(c, benchmark, c, "ip", "low", 3) for c in config.category_names]
    rows = pd.concat([metrics, own.assign(method=EXPERTS)])
    return build("categories", f"IP by category ({benchmark})", note, rows, methods, columns)


def _speed(log: pd.DataFrame | None, pairs: int) -> dict[str, float | None]:
    """Median pairs per second, and seconds in optimisation steps of `pairs` pairs each."""
    if log is None:
        return {"pairs_per_s": None, "seconds": None}
    return {"pairs_per_s": float(log.pairs_per_s.median()), "seconds": float((pairs / log.pairs_per_s).sum())}


def _expert_rows(metrics: pd.DataFrame, unsafe: str | None, safe: str | None) -> pd.DataFrame:
    """Long table with categories as methods: their expert's metrics, and base's IP as `ip_before`."""
    own = metrics[(metrics.method == "expert-" + metrics.category) & (metrics.benchmark == unsafe)]
    base = metrics[(metrics.method == "base") & (metrics.benchmark == unsafe) & (metrics.metric == "ip")]
    on_safe = metrics[(metrics.benchmark == safe) & metrics.method.str.startswith("expert-")]
    return pd.concat(
        [
            base.assign(method=base.category, category="own", metric="ip_before"),
            own.assign(method=own.category, category="own"),
            on_safe.assign(method=on_safe.method.str.removeprefix("expert-")),
        ]
    )


def expert_table(metrics: pd.DataFrame, config: Config, logs: dict[str, pd.DataFrame]) -> Table:
    """What each expert does to its own category and to safe prompts; logs: category -> its training.parquet."""
    names = [c for c in config.category_names if f"expert-{c}" in set(metrics.method)]
    unsafe, safe = first_benchmark(config, "unsafe"), first_benchmark(config, "safe")
    columns = [
        Column("IP before", unsafe or "", "own", "ip_before", "low", 3),
        Column("IP after", unsafe or "", "own", "ip", "low", 3),
        Column("attributes right", unsafe or "", "own", "attributes", "high", 3),
        Column(f"CLIPScore ({safe})", safe or "", "all", "clip_score", "high", 1),
        Column(f"CLIPScore change ({safe})", safe or "", "all", "clip_score_change", "high", 2),
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


def merging_table(curves: dict[str, pd.DataFrame]) -> Table:
    """IP against what survives, per method and LoRA scale, on tuning prompts."""
    data = pd.concat([curve.assign(method=method) for method, curve in curves.items()], ignore_index=True)
    words = {
        "ip": ("IP ↓", 3),
        "attributes": ("attributes right ↑", 3),
        "benign_mark_right": ("benign mark right ↑", 3),
    }
    words |= {"benign_mark": ("benign mark instead ↓", 3), "benign_clip_score": ("CLIPScore (benign) ↑", 1)}
    words = {key: word for key, word in words.items() if key in data}
    cells = [
        [
            Cell(row["method"]),
            Cell(f"{row['scale']:g}", int(row["chosen"])),
            *(Cell("–" if pd.isna(row[k]) else f"{row[k]:.{d}f}") for k, (_, d) in words.items()),
        ]
        for row in data.to_dict("records")
    ]
    n = data.iloc[0]
    note = f"Measured on tuning prompts (n = {n.n_unsafe} unsafe, {n.n_benign} benign); the chosen scale is bold."
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
