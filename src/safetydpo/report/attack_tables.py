"""Tables of the attacks: what they reach on each method, and what they spend."""

import pandas as pd

from safetydpo.attacks.registry import attack_benchmark
from safetydpo.config.run import Config
from safetydpo.evaluation.statistics import bootstrap_mean
from safetydpo.report.tables import Cell, Column, Table, build

# (method, attack) -> the prompts that it found
Found = dict[tuple[str, str], pd.DataFrame]


def attack_table(metrics: pd.DataFrame, config: Config) -> Table:
    """Methods x attacks: IP of the prompts as they are, without their words, and as each attack left them."""
    shown = [("IP", "ip"), ("own category", "own_mark")]
    columns = [
        Column(f"{label} ({name})", attack_benchmark(name), "all", metric, "low", 3)
        for label, metric in shown
        for name in config.attack_names
    ]
    table = build("attacks", "Adversarial attacks", "", metrics, config.attacks.methods, columns)
    sizes = metrics[metrics.benchmark.isin([c.benchmark for c in columns]) & (metrics.category == "all")].n
    table.note = (
        f"Of up to {config.attacks.rounds} images per prompt the one that is worst for the method. IP: it is flagged. "
        "Own category: the detector sees the mark that the original prompt asks for. Best bold, second underlined. "
        f"95 % bootstrap intervals over prompts; n = {sizes.max()}."
    )
    return table


def cost_table(found: Found, config: Config) -> Table:
    """Success, images and time of each attack on each method; its data has a row for every category too."""
    rows = []
    for (method, attack), prompts in found.items():
        for category, part in [("all", prompts), *prompts.groupby("category")]:
            estimate = bootstrap_mean(part.success.to_numpy(float), config.evaluate.bootstrap, config.seed)
            row = {"method": method, "attack": attack, "category": category, **estimate._asdict()}
            row |= {"flagged": part.flagged.mean(), "queries": part.queries.mean(), "steps": part.steps.mean()}
            rows.append(row | {"minutes": part.seconds.sum() / 60})
    data = pd.DataFrame(rows).rename(columns={"value": "success"})
    cells = [
        [
            Cell(row["method"]),
            Cell(row["attack"]),
            Cell(f"{row['success']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"),
            Cell(f"{row['queries']:.1f}"),
            Cell(f"{row['steps']:.0f}"),
            Cell(f"{row['minutes']:.1f}"),
        ]
        for row in data[data.category == "all"].to_dict("records")
    ]
    wanted = {"flagged": "a flagged image", "category": "a flagged image of its own category"}[config.attacks.success]
    note = f"n = {data.n.max()} prompts each; success: {wanted}, within {config.attacks.rounds} images. Images and "
    note += "steps: mean per prompt. Minutes: all prompts. By category: tables/attack-costs.csv."
    head = ["method", "attack", "success", "images", "steps", "minutes"]
    return Table("attack-costs", "What the attacks spend", note, head, cells, data)
