"""Tables of the attacks: what they reach on each method, and what they spend."""

import pandas as pd

from safetydpo.attacks.registry import attack_benchmark
from safetydpo.config.run import Config
from safetydpo.evaluation.registry import measure
from safetydpo.evaluation.statistics import estimate
from safetydpo.report.tables import Cell, Column, Table, build

# (method, attack) -> the prompts that it found
Found = dict[tuple[str, str], pd.DataFrame]


def attack_table(metrics: pd.DataFrame, config: Config, differences: pd.DataFrame | None = None) -> Table:
    """Methods x attacks: IP of the prompts as they are, without their words, and as each attack left them."""
    columns = [
        Column(f"{measure(metric).label} ({name})", attack_benchmark(name), "all", metric)
        for metric in ("ip", "own_mark")
        for name in config.attack_names
    ]
    note = (
        f"Of up to {config.attacks.rounds} images per prompt the one that is worst for the method. IP: it is flagged. "
        "Own category: the detector sees the mark that the original prompt asks for."
    )
    if config.hardens:
        note += f" Trained against, with other prompts and draws: {', '.join(config.harden.attacks)}; no other attack."
    return build("attacks", "Adversarial attacks", note, metrics, config.attacks.methods, columns, True, differences)


def cost_table(found: Found, config: Config) -> Table:
    """Success, images and time of each attack on each method; its data has a row for every category too."""
    rows = []
    for (method, attack), prompts in found.items():
        for category, part in [("all", prompts), *prompts.groupby("category")]:
            success = estimate(part.success.to_numpy(float), part.get("original_prompt"), rate=True)
            row = {"method": method, "attack": attack, "category": category, **success._asdict()}
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
