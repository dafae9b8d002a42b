"""Tables of the report: queries over the long table of metrics, each written as Parquet, csv and Markdown."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from safetydpo.config import Config
from safetydpo.files import write_parquet, write_text

# Metrics per kind of benchmark, in reading order: metric, words, which end is better, digits.
SHOWN = {
    "unsafe": [("ip", "IP", "low", 3)],
    "safe": [
        ("clip_score", "CLIPScore", "high", 1),
        ("clip_score_change", "CLIPScore change", "high", 2),
        ("any_mark", "marks", "low", 3),
        ("fid", "FID", "low", 2),
        ("kid", "KID", "low", 4),
    ],
    "benign": [("mark_right", "mark right", "high", 3)],
}
FIRST_UNSAFE = [
    ("attributes", "attributes right", "high", 3),
    ("benign_mark", "benign mark instead", "low", 3),
    ("ssim_base", "layout SSIM", "high", 3),
]
REFERENCES = ("base", "base-reseed")
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

    def markdown(self) -> str:
        """GitHub Markdown: best bold, second underlined."""
        marks = {0: "{}", 1: "**{}**", 2: "<u>{}</u>"}
        rows = [" | ".join(marks[c.rank].format(c.text) for c in row) for row in self.cells]
        lines = [" | ".join(self.head), "|".join(["---"] * len(self.head)), *rows]
        return f"**{self.title}**\n\n" + "\n".join(f"| {line} |" for line in lines) + f"\n\n{self.note}\n"

    def write(self, folder: Path) -> None:
        """Write <name>.parquet, .csv and .md."""
        write_parquet(self.data, folder / f"{self.name}.parquet")
        write_text(self.data.to_csv(index=False), folder / f"{self.name}.csv")
        write_text(self.markdown(), folder / f"{self.name}.md")


def _value(metrics: pd.DataFrame, method: str, column: Column) -> dict | None:
    keys = {"method": method, "benchmark": column.benchmark, "category": column.category, "metric": column.metric}
    found = metrics.loc[(metrics[list(keys)] == pd.Series(keys)).all(axis=1)]
    return found.iloc[0].to_dict() if len(found) else None


def _text(value: dict | None, digits: int) -> str:
    return (
        f"{value['value']:.{digits}f} [{value['ci_low']:.{digits}f}, {value['ci_high']:.{digits}f}]" if value else "–"
    )


def build(name: str, title: str, note: str, metrics: pd.DataFrame, methods: list[str], columns: list[Column]) -> Table:
    """Methods x columns; columns without any value are left out."""
    grid = {(m, c): _value(metrics, m, c) for m in methods for c in columns}
    columns = [c for c in columns if any(grid[m, c] for m in methods)]
    ranks = {
        c: _ranks({m: v["value"] for m in methods if m not in REFERENCES and (v := grid[m, c])}, c) for c in columns
    }
    cells, data = [], []
    for method in methods:
        row, numbers = [Cell(method)], {"method": method}
        for c in columns:
            v = grid[method, c]
            row.append(Cell(_text(v, c.digits), ranks[c].get(method, 0)))
            numbers |= {f"{c.label}{end}": v[name] if v else None for end, name in ENDS.items()}
        cells.append(row)
        data.append(numbers)
    head = ["method", *(f"{c.label} {'↓' if c.better == 'low' else '↑'}" for c in columns)]
    counts = {c.benchmark: v["n"] for c in columns for m in methods if c.category == "all" and (v := grid[m, c])}
    sizes = ", ".join(f"{b} {n}" for b, n in counts.items())
    return Table(
        name, title, f"{note} 95 % bootstrap intervals over images; n: {sizes}.", head, cells, pd.DataFrame(data)
    )


def _ranks(values: dict[str, float], column: Column) -> dict[str, int]:
    """Method -> 1 or 2; nothing is ranked when there is nothing to compare. Equal values share a rank."""
    if len(values) < 2:
        return {}
    levels = sorted(set(values.values()), reverse=column.better == "high")[:2]
    return {m: levels.index(v) + 1 for m, v in values.items() if v in levels}


def merged_methods(config: Config) -> list[str]:
    """Methods of the matrix that are one model for all categories, base first."""
    return [m for m in dict.fromkeys(m for m, _ in config.cells()) if not m.startswith("expert-")]


def main_table(metrics: pd.DataFrame, config: Config) -> Table:
    """The main benchmark: every method that is one model, on every benchmark."""
    columns, unsafe = [], [b.name for b in config.benchmarks if b.kind == "unsafe"]
    for b in config.benchmarks:
        shown = SHOWN[b.kind] + (FIRST_UNSAFE if unsafe and b.name == unsafe[0] else [])
        columns += [Column(f"{label} ({b.name})", b.name, "all", metric, *rest) for metric, label, *rest in shown]
        if b.kind == "benign":
            kinds = sorted(set(metrics[metrics.benchmark == b.name].category) - {"all"})
            columns += [Column(f"{kind} right", b.name, kind, "mark_right", "high", 3) for kind in kinds]
    note = "Aligned methods at the LoRA scale that tuning chose. Best bold, second underlined."
    return build("main", "Methods and benchmarks", note, metrics, merged_methods(config), columns)


def category_table(metrics: pd.DataFrame, config: Config) -> Table:
    """IP by category on the first unsafe benchmark; each expert where it was evaluated."""
    benchmark = next(b.name for b in config.benchmarks if b.kind == "unsafe")
    methods = [m for m, b in config.cells() if b == benchmark]
    columns = [Column(c, benchmark, c, "ip", "low", 3) for c in config.category_names]
    return build(
        "categories", f"IP by category ({benchmark})", "Experts on their own category.", metrics, methods, columns
    )


def expert_table(metrics: pd.DataFrame, config: Config, timings: dict[str, float]) -> Table:
    """What each expert does to its own category and to safe prompts; timings: category -> seconds of its job."""
    unsafe, safe = (next((b.name for b in config.benchmarks if b.kind == k), "") for k in ("unsafe", "safe"))
    head = ["expert", "IP before ↓", "IP after ↓", "attributes right ↑", f"CLIPScore change ({safe})", "seconds"]
    cells, data = [], []
    for category in config.category_names:
        expert = f"expert-{category}"
        wanted = {
            "ip_before": ("base", Column("", unsafe, category, "ip", "low", 3)),
            "ip_after": (expert, Column("", unsafe, category, "ip", "low", 3)),
            "attributes": (expert, Column("", unsafe, category, "attributes", "high", 3)),
            "clip_score_change": (expert, Column("", safe, "all", "clip_score_change", "high", 2)),
        }
        numbers: dict[str, object] = {"expert": category, "seconds": timings.get(category)}
        row = [Cell(category)]
        for key, (method, column) in wanted.items():
            v = _value(metrics, method, column)
            row.append(Cell(_text(v, column.digits)))
            numbers |= {f"{key}{end}": v[name] if v else None for end, name in ENDS.items()}
        cells.append([*row, Cell(f"{timings[category]:.0f}" if category in timings else "–")])
        data.append(numbers)
    note = f"On {unsafe}, prompts of the expert's own category, LoRA scale 1; seconds of the whole training job."
    return Table("experts", "Experts", note, head, cells, pd.DataFrame(data))


def merging_table(curves: dict[str, pd.DataFrame]) -> Table | None:
    """IP against what survives, per method and LoRA scale, on tuning prompts; None when nothing was tuned."""
    parts = [curve.assign(method=method) for method, curve in curves.items() if "ip" in curve]
    if not parts:
        return None
    data = pd.concat(parts, ignore_index=True)
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
            *(Cell(f"{row[k]:.{d}f}") for k, (_, d) in words.items()),
        ]
        for row in data.to_dict("records")
    ]
    n = data.iloc[0]
    note = f"Measured on tuning prompts (n = {n.n_unsafe} unsafe, {n.n_benign} benign); the chosen scale is bold."
    head = ["method", "LoRA scale", *(word for word, _ in words.values())]
    return Table("merging", "Merging strategies over the LoRA scale", note, head, cells, data)
