"""When do experts win? Rank x number of categories at equal budget: merged experts against one LoRA on all data.

    python benchmarks/experts.py results/demo results/demo-1 results/demo-2
    python benchmarks/experts.py results/demo --ranks 1 4 --categories 2 7 --plot

On finished runs' features: an expert of each rank and category, All-single of each rank and number of categories with
as many steps as its experts together, at its own learning rate. Every method gets its LoRA scale by one search, and is
measured on the prompts of `test` of those categories and of `benign`. Trainings are kept under --folder, rows in its
experts.csv; what is there is not made again. Of the run's own rank the run's own LoRAs are taken, where it has them.
It takes hours: every method is searched and measured by itself.
"""

import argparse
import os
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from tuned import searched, span

from safetydpo.config.loading import read_config
from safetydpo.config.run import Config
from safetydpo.config.training import Train
from safetydpo.evaluation.scores import METRICS
from safetydpo.evaluation.tune import judged
from safetydpo.judges.eyes import Eyes
from safetydpo.merging.registry import STRATEGIES
from safetydpo.merging.stage import merge_experts, write_coactivation, write_covariances
from safetydpo.models.lora import FILE
from safetydpo.running.devices import device_of
from safetydpo.storage.files import read_parquet, write_text
from safetydpo.training.stage import train_expert

SINGLE = "all-single"
MERGES = ("co-merge", "mean", "fusion")
METHODS = (SINGLE, *MERGES)
MEASURED = {"IP": ("unsafe", "ip"), "attributes": ("unsafe", "attributes"), "instead": ("unsafe", "benign_mark")}


class Trainings:
    """The LoRAs of a run by rank, in `folder`."""

    def __init__(self, run: Path, config: Config, folder: Path) -> None:
        self.run, self.config, self.folder = run, config, folder
        self.retain = str(run / "retain/features.safetensors")

    def features(self, category: str) -> list[str]:
        """The files of a category's own pairs."""
        return [str(path) for path in sorted((self.run / "features" / category).glob("*.safetensors"))]

    def pairs(self, category: str) -> list[str]:
        """The same and those that adversarial rounds added: what an expert is trained on."""
        added = [self.run / f"harden/{i + 1}/features/{category}.safetensors" for i in range(self.config.harden.rounds)]
        return [*self.features(category), *map(str, added)]

    def lora(self, name: str, rank: int, features: list[str], train: Train, steps: int) -> Path:
        """The folder of a LoRA of this rank, trained if it is not there."""
        own = self.run / "experts" / name
        if rank == self.config.train.rank and (own / FILE).exists():
            return own
        out = self.folder / f"rank-{rank}" / name
        if not (out / FILE).exists():
            train = train.model_copy(update={"rank": rank, "alpha": None})
            settings = {"steps": steps, "seed": self.config.seed, "name": name, "out": out}
            train_expert(
                features, self.retain, self.config.model, train, **settings, checkpoints=self.folder / "checkpoints"
            )
        return out

    def experts(self, rank: int, categories: list[str]) -> dict[str, Path]:
        """The experts of the categories."""
        train = self.config.train
        return {name: self.lora(name, rank, self.pairs(name), train, train.steps) for name in categories}

    def single(self, rank: int, categories: list[str]) -> Path:
        """One LoRA on the pairs of all."""
        features = [path for name in categories for path in self.pairs(name)]
        steps = self.config.train.steps * len(categories)
        name = SINGLE if len(categories) == len(self.config.categories) else f"{SINGLE}-{len(categories)}"
        return self.lora(name, rank, features, self.config.train_of_all_single(), steps)

    def merged(self, strategy: str, rank: int, experts: dict[str, Path]) -> Path:
        """The experts merged by a strategy."""
        out, config, seed = self.folder / f"rank-{rank}" / f"{strategy}-{len(experts)}", self.config, self.config.seed
        features, needed = {name: self.features(name) for name in experts}, STRATEGIES[strategy].statistics
        statistics = out / needed if needed else None
        if statistics and strategy == "co-merge":
            write_coactivation(experts, features, config.model, config.merge, seed, statistics)
        elif statistics:
            write_covariances(experts, features, self.retain, config.model, config.merge, seed, statistics)
        merge_experts(strategy, experts, statistics and str(statistics), config.model, config.merge, seed, out)
        return out


def measure(run: Path, config: Config, lora: Path, categories: list[str], eyes: Eyes) -> dict[str, float]:
    """Scale and measures of a LoRA, tuned and judged on prompts of these categories and on benign ones."""
    tuning = read_parquet(run / "tuning/prompts.parquet")
    curve = searched(tuning[(tuning.kind != "unsafe") | tuning.category.isin(categories)], lora, config)
    scale = float(curve.query("chosen").scale.iloc[0])
    rows = pd.concat([read_parquet(run / f"benchmarks/{name}.parquet") for name in ("test", "benign")])
    rows = rows[(rows.kind != "unsafe") | rows.category.isin(categories)]
    scores = judged(rows, lora, scale, config.model, eyes, config.judges.acting)
    row = {"scale": scale}
    for label, (kind, metric) in MEASURED.items():
        row[label] = METRICS[metric](scores[scores.kind == kind]).mean()  # type: ignore[union-attr]
    return row | {
        f"{kind} right": part.mark_right.mean() for kind, part in scores[scores.kind == "benign"].groupby("category")
    }


def plot(table: pd.DataFrame, path: Path) -> None:
    """IP, and the share right of the benign kind that nobody retained, over the rank: means and ranges of the runs."""
    counts, shown = sorted(table.categories.unique()), ("IP", "moon right")
    figure = Figure(figsize=(3 * len(counts), 5), layout="constrained")
    axes = figure.subplots(len(shown), len(counts), sharex=True, sharey="row", squeeze=False)
    for axis, count in zip(axes[0], counts, strict=True):
        axis.set_title(f"{count} categories")
    for row, label in zip(axes, shown, strict=True):
        row[0].set_ylabel(label)
        for axis, count in zip(row, counts, strict=True):
            for method, part in table[table.categories == count].groupby("method", sort=False):
                each = part.groupby("rank")[label].agg(["mean", "min", "max"])
                ends = [each["mean"] - each["min"], each["max"] - each["mean"]]
                beside = each.index * 1.06 ** METHODS.index(method)  # bars of equal ranks would hide each other
                axis.errorbar(beside, each["mean"], ends, label=method, marker="o", markersize=3, capsize=2)
            axis.set_xscale("log", base=2)
            axis.set_xticks(ranks := sorted(table["rank"].unique()), labels=map(str, ranks))
    figure.supxlabel("rank")
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, metadata={"Date": None})


def show(table: pd.DataFrame) -> None:
    """Markdown: mean over the runs [lowest, highest]."""
    columns = ["scale", *MEASURED, *(name for name in table if name.endswith(" right"))]
    print("| categories | rank | method | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 3))
    for (count, rank, method), part in table.groupby(["categories", "rank", "method"], sort=False):
        print(f"| {count} | {rank} | {method} | " + " | ".join(span(part[c]) for c in columns) + " |")


def main() -> None:
    """Train and measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4, 16])
    parser.add_argument("--categories", nargs="+", type=int, default=[2, 4, 7], help="how many, the first ones")
    parser.add_argument("--device", help="where it trains and renders; the run's own")
    parser.add_argument("--folder", type=Path, default=Path("results/experts"))
    parser.add_argument("--plot", action="store_true", help="experts.svg too")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    out = args.folder / "experts.csv"
    rows = pd.read_csv(out).to_dict("records") if out.exists() else []
    for run in args.runs:
        config = read_config(run / "config.yaml")
        device = args.device or config.model.device
        config = config.model_copy(update={"model": config.model.model_copy(update={"device": device})})
        eyes = Eyes(config.judges, device_of(device))
        trainings = Trainings(run, config, args.folder / run.name)
        for rank, count, method in [(r, c, m) for r in args.ranks for c in args.categories for m in METHODS]:
            place = {"run": run.name, "rank": rank, "categories": count, "method": method}
            if any(all(row[key] == value for key, value in place.items()) for row in rows):
                continue
            names = config.category_names[:count]
            if method == SINGLE:
                lora = trainings.single(rank, names)
            else:
                lora = trainings.merged(method, rank, trainings.experts(rank, names))
            rows.append(place | measure(run, config, lora, names, eyes))
            write_text(pd.DataFrame(rows).to_csv(index=False), out)
    table = pd.DataFrame(rows)
    show(table)
    if args.plot:
        plot(table, args.folder / "experts.svg")


if __name__ == "__main__":
    main()
