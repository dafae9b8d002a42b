"""A small run folder with all that its report reads."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from snakes import REDUCED, ROOT

from safetydpo.config.loading import load_config
from safetydpo.storage.files import made_by, write_parquet, write_text
from safetydpo.storage.images import png

VALUES = yaml.safe_load((ROOT / "config/config.yaml").read_text())
CATEGORIES = ("ring", "cross")
# Q16 calls every image unsafe, the detector none.
LABELS = ("none", "leaf", "cloud", "moon", "stripes", "checker", "cross", "zigzag", "ring", "arrow", "grid", "garbage")
SCORES = {"q16": 0.9} | {f"demo[{label}]": float(label == "none") for label in LABELS}


def row(method, benchmark, metric, value, category="all", n=280):
    cell = {"method": method, "benchmark": benchmark, "category": category, "metric": metric, "value": value}
    return {**cell, "ci_low": value - 0.01, "ci_high": value + 0.01, "n": n, "seed": 0}


def checks(size):
    pixels = (np.indices((size, size)).sum(0) // (size // 8) % 2 * 255).astype(np.uint8)
    return png(np.repeat(pixels[..., None], 3, axis=2))


@pytest.fixture
def synthetic():
    """Folder, changes of the config -> a run folder with what the report reads, and its config."""

    def run_of(folder, **changes):
        values = VALUES | {"run": "small", "results": str(folder), "categories": [{"name": c} for c in CATEGORIES]}
        reduced = yaml.safe_load(REDUCED.read_text())
        values |= {"evaluate": reduced["evaluate"], "report": {"scenes": 2}}
        values |= {"tune": VALUES["tune"] | {"scales": [0.5, 1]}}
        config = load_config(values | changes)
        run, rows = folder / "small", []
        for i, (method, benchmark) in enumerate(config.cells()):
            facts = {"prompt_id": list("abcd"), "category": ["ring", "ring", "cross", "cross"]}
            images = pd.DataFrame({**facts, "prompt": [f"{benchmark} <{p}>" for p in "abcd"]})
            images["image"] = [checks(16)] * 4
            write_parquet(images, run / f"images/{method}/{benchmark}/0.parquet")
            scores = pd.DataFrame({**facts, "prompt": images.prompt, **SCORES, "seed": 0})
            write_parquet(scores, run / f"scores/{method}/{benchmark}.parquet", made_by("score"))
            for category in ("all", *CATEGORIES):
                rows += [row(method, benchmark, metric, 0.5 - i / 100, category, 4) for metric in ("ip", "clip_score")]
        write_parquet(pd.DataFrame(rows), run / "metrics.parquet")
        write_comparisons(run, config, rows)
        if config.trains:
            write_prompts(run)
            write_logs(run, config)
        for external in config.baselines.externals:
            facts = {"path": external.path, "pipeline": "TinyPipeline", "unet_parameters": 7654321}
            write_text(json.dumps(facts), run / f"externals/{external.name}.json")
        about = {"q16": {"labels": [], "prompts": "a1"}, "demo": {"labels": list(LABELS), "weights": "b2"}}
        (run / "judges.json").write_text(json.dumps({"judges": about}))
        (run / "model.json").write_text(json.dumps({"id": "tiny", "unet_parameters": 1234567}))
        (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        return run, config

    return run_of


def write_comparisons(run, config, rows):
    """Differences from base, agreement of the first two verdicts, and curves over Q16's threshold."""
    base = {(r["benchmark"], r["category"], r["metric"]): r["value"] for r in rows if r["method"] == "base"}
    found = [
        {**r, "other": "base", "value": r["value"] - base[key], "p_value": 0.01, "test": "bootstrap"}
        for r in rows
        if (key := (r["benchmark"], r["category"], r["metric"])) in base and r["method"] != "base"
    ]
    columns = [*rows[0], "other", "p_value", "test"]
    write_parquet(pd.DataFrame(found, columns=columns), run / "differences.parquet")
    pair = {"category": "all", "verdict": "demo", "other": "q16", "n": 4, "agreement": 0.75, "kappa": np.nan}
    agreed = [{"method": m, "benchmark": b, **pair} for m, b in config.cells()]
    write_parquet(pd.DataFrame(agreed), run / "agreement.parquet")
    curve = pd.DataFrame({"threshold": [0.0, 0.5, 1.0], "value": [1.0, 0.5, 0.0]}).assign(score="q16", n=4)
    curves = [curve.assign(method=m, benchmark=b) for m, b in config.cells()]
    write_parquet(pd.concat(curves), run / "thresholds.parquet")


def write_prompts(run):
    """Pairs and rejected ones of each category."""
    for category in CATEGORIES:
        pairs = {"concept": ["x", "y", "y"], "split": ["train", "train", "test"], "leak": [False, True, False]}
        write_parquet(pd.DataFrame({**pairs, "similarity": [0.5, 0.9, 0.95]}), run / f"prompts/{category}.parquet")
        reasons = pd.DataFrame({"reason": ["refusal", "too far", "refusal"], "similarity": [np.nan, 0.2, np.nan]})
        write_parquet(reasons.head(3 if category == "ring" else 0), run / f"rejected/{category}.parquet")


def write_logs(run, config):
    """Training logs; curves of tuning where there are several scales; co-activation where Co-Merge runs."""
    log = {"step": range(5), "preference_loss": 0.6, "implicit_accuracy": 0.5, "winner_error": 0.2, "pairs_per_s": 9.0}
    log |= {"loser_error": 0.3, "reference_loser_error": 0.2, "grad_norm": 1.5, "lr": 1e-3}
    for name in (*CATEGORIES, "all-single"):
        write_parquet(pd.DataFrame({**log, "reference_winner_error": 0.2}), run / f"experts/{name}/training.parquet")
    if len(config.tune.scales) > 1:
        curve = {
            "scale": [0.5, 1.0],
            "ip": [0.3, 0.0],
            "benign_clip_score": [80.0, 79.0],
            "base_benign_clip_score": 80.0,
            "chosen": [False, True],
        }
        for method in ("all-single", *(f"merged-{s}" for s in config.merge.strategies)):
            write_parquet(pd.DataFrame({**curve, "n_unsafe": 3, "n_benign": 3}), run / f"tuning/{method}.parquet")
    if "co-merge" in config.merge.strategies:
        wins = [
            {"module": f"down_blocks.{m}.to_q", "unit": u, "expert": e, "wins": u + len(e), "inputs": 9}
            for m in range(2)
            for e in CATEGORIES
            for u in range(3)
        ]
        write_parquet(pd.DataFrame(wins), run / "merged/co-merge/coactivation.parquet")
