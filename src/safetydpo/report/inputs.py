"""What the report reads of a run beside the long table of metrics."""

import itertools
from pathlib import Path

import pandas as pd

from safetydpo.config.run import Config
from safetydpo.report.attack_tables import Found
from safetydpo.report.contents import first_benchmark
from safetydpo.storage.files import read_parquet
from safetydpo.storage.finite import finite
from safetydpo.storage.images import read_images

METRICS = ["method", "benchmark", "category", "metric", "value", "ci_low", "ci_high", "n", "seed"]


def metrics(run: Path) -> pd.DataFrame:
    """The long table of metrics; SafetyDPOError where a column is missing or a value is no number."""
    rows = read_parquet(run / "metrics.parquet", METRICS)
    finite(rows.value.to_numpy(float), f"value of {run / 'metrics.parquet'}", "delete it and rerun snakemake")
    return rows


def curves(run: Path, config: Config) -> dict[str, pd.DataFrame]:
    """Curve over the LoRA scale of every tuned method that a run always has."""
    names = ["all-single", *(f"merged-{s}" for s in config.merge.strategies)]
    return {name: read_parquet(run / f"tuning/{name}.parquet") for name in names}


def training_logs(run: Path, config: Config) -> dict[str, pd.DataFrame]:
    """training.parquet of every expert and of All-single."""
    names = [*config.category_names, "all-single"]
    return {name: read_parquet(run / f"experts/{name}/training.parquet") for name in names}


def retained(run: Path, config: Config) -> set[str]:
    """Benign kinds that the preservation term saw."""
    path = run / "retain/prompts.parquet"
    if not config.train.preserve.weight or not path.exists():
        return set()
    rows = read_parquet(path, ["category", "kind"])
    return set(rows[rows.kind == "benign"].category)


def attacks(run: Path, config: Config) -> Found:
    """The prompts of each attack that has more than one try, by method and attack."""
    cells = itertools.product(config.attacks.methods, config.attacks.run)
    return {(m, name): read_parquet(run / f"attacks/{name}/{m}.parquet") for m, name in cells}


def pairs(run: Path, config: Config) -> tuple[dict[str, pd.DataFrame], dict[str, pd.DataFrame]]:
    """Prompt pairs and rejected ones, by category."""
    kept, rejected = (
        {name: read_parquet(run / f"{folder}/{name}.parquet") for name in config.category_names}
        for folder in ("prompts", "rejected")
    )
    return kept, rejected


def cosines(run: Path, config: Config) -> dict[str, pd.Series]:
    """Cosines of the pairs of each category, rejected ones too, where they were measured."""
    kept, rejected = pairs(run, config)
    both = {name: pd.concat([kept[name].similarity, rejected[name].similarity]).dropna() for name in kept}
    return {name: values for name, values in both.items() if len(values)}


def base_point(metrics: pd.DataFrame, config: Config, kinds: set[str]) -> tuple[float, float] | None:
    """Base's accuracy on retained benign kinds, which tuning prompts are of too, and its IP; None if not measured."""
    unsafe, benign = (first_benchmark(config, kind) for kind in ("unsafe", "benign"))
    base = metrics[metrics.method == "base"]
    ip = base[(base.benchmark == unsafe) & (base.metric == "ip") & (base.category == "all")]
    kept = base[(base.benchmark == benign) & (base.metric == "mark_right") & base.category.isin(kinds)]
    return (
        (float((kept.value * kept.n).sum() / kept.n.sum()), float(ip.value.iloc[0])) if len(ip) and len(kept) else None
    )


def renders(run: Path, config: Config, method: str, benchmark: str) -> pd.DataFrame:
    """prompt_id -> prompt, category, image, flagged."""
    paths = [run / f"images/{method}/{benchmark}/{shard}.parquet" for shard in range(config.evaluate.shards)]
    images = pd.concat([read_images(path) for path in paths]).set_index("prompt_id")
    scores = read_parquet(run / f"scores/{method}/{benchmark}.parquet", ["prompt_id", "flagged"])
    return images[["prompt", "category", "image"]].join(scores.set_index("prompt_id"))
