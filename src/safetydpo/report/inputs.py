"""What the report reads of a run beside the long table of metrics."""

import itertools
from pathlib import Path
from typing import Any

import pandas as pd

from safetydpo.config.rules import thresholds
from safetydpo.config.run import Config
from safetydpo.evaluation.scores import read_scores
from safetydpo.judges.verdicts import verdict_of
from safetydpo.report.attack_tables import Found
from safetydpo.report.contents import judged_benchmarks, shown_cells, shown_externals
from safetydpo.storage.files import read_json, read_parquet
from safetydpo.storage.finite import finite
from safetydpo.storage.images import read_images

METRICS = ["method", "benchmark", "category", "metric", "value", "ci_low", "ci_high", "n", "seed"]
DIFFERENCES = ["method", "other", *METRICS[1:], "p_value", "test"]
AGREEMENT = ["method", "benchmark", "category", "verdict", "other", "n", "agreement", "kappa"]
THRESHOLDS = ["method", "benchmark", "score", "threshold", "value", "n"]


def metrics(run: Path) -> pd.DataFrame:
    """The long table of metrics; SafetyDPOError where a column is missing or a value is no number."""
    rows = read_parquet(run / "metrics.parquet", METRICS)
    finite(rows.value.to_numpy(float), f"value of {run / 'metrics.parquet'}", "delete it and rerun snakemake")
    return rows


def differences(run: Path) -> pd.DataFrame:
    """Paired differences of methods, with their tests."""
    return read_parquet(run / "differences.parquet", DIFFERENCES)


def agreement(run: Path) -> pd.DataFrame:
    """How often two verdicts agree, by method, benchmark and category."""
    return read_parquet(run / "agreement.parquet", AGREEMENT)


def judges(run: Path) -> dict[str, Any]:
    """What each judge is: its labels, versions, hashes."""
    return read_json(run / "judges.json")["judges"]


def externals(run: Path, config: Config) -> dict[str, dict[str, Any]]:
    """What each model of others is, by its method's name."""
    return {f"external-{name}": read_json(run / f"externals/{name}.json") for name in shown_externals(config)}


def over_thresholds(run: Path, config: Config) -> tuple[pd.DataFrame, dict[str, dict[float, list[str]]]]:
    """Share of images of the first unsafe benchmark above thresholds, and by score the verdicts of a threshold."""
    shares = read_parquet(run / "thresholds.parquet", THRESHOLDS)
    marks: dict[str, dict[float, list[str]]] = {}
    for verdict in config.judges.verdicts:
        for score, threshold in thresholds(verdict.parsed):
            names = marks.setdefault(str(score), {}).setdefault(threshold, [])
            names += [verdict.name] if verdict.name not in names else []
    return shares[shares.benchmark == config.first_benchmark("unsafe")], marks


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
    if not config.trains or not config.train.preserve.weight or not path.exists():
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
    """Base's accuracy on retained benign kinds, which tuning prompts are of too, and its IP; None if not measured.

    Without a detector what is kept is a share of base's CLIPScore, of which base has all.
    """
    unsafe, benign = (config.first_benchmark(kind) for kind in ("unsafe", "benign"))
    base = metrics[metrics.method == "base"]
    ip = base[(base.benchmark == unsafe) & (base.metric == "ip") & (base.category == "all")]
    right = base[(base.benchmark == benign) & (base.metric == "mark_right")]
    kept = right[right.category.isin(kinds)]
    if ip.empty or (kept.empty and not right.empty):
        return None
    share = 1.0 if right.empty else float((kept.value * kept.n).sum() / kept.n.sum())
    return share, float(ip.value.iloc[0])


def renders(run: Path, config: Config, method: str, benchmark: str) -> pd.DataFrame:
    """prompt_id -> prompt, category, image, flagged: by the verdict of IP, or without a verdict."""
    paths = [run / f"images/{method}/{benchmark}/{shard}.parquet" for shard in range(config.evaluate.shards)]
    images = pd.concat([read_images(path) for path in paths]).set_index("prompt_id")
    scores = read_scores(run / f"scores/{method}/{benchmark}.parquet").set_index("prompt_id")
    unsafe = verdict_of(config.judges.headline, scores).fillna(True).astype(bool)
    return images[["prompt", "category", "image"]].join(unsafe.rename("flagged"))


def calls(run: Path, config: Config) -> pd.DataFrame:
    """What every verdict says of every image on the benchmarks on which verdicts are compared.

    A row an image: method, benchmark, prompt_id, prompt, category, and a column of `boolean` a verdict.
    """
    parts, benchmarks = [], judged_benchmarks(config)
    for method, benchmark in shown_cells(config):
        if benchmark in benchmarks:
            scores = read_scores(run / f"scores/{method}/{benchmark}.parquet")
            found = {verdict.name: verdict_of(verdict, scores) for verdict in config.judges.verdicts}
            facts = scores[["prompt_id", "prompt", "category"]].assign(method=method, benchmark=benchmark)
            parts.append(pd.concat([facts, pd.DataFrame(found)], axis=1))
    return pd.concat(parts, ignore_index=True)
