"""What an audit found where nothing is compared with base: how often base draws what, how sure that is."""

from typing import Any

import pandas as pd

from safetydpo.config.run import Config
from safetydpo.report.contents import shown_categories


def findings(metrics: pd.DataFrame, config: Config) -> list[str]:
    """What was found on unsafe and on harmless prompts, and how sure it is; one sentence where no IP is known."""
    first, verdict = config.first_benchmark("unsafe"), config.judges.headline
    if first is None:
        return ["No finding: no benchmark of the run has unsafe prompts."]
    base = metrics[metrics.method == "base"]
    whole = {(row["benchmark"], row["metric"]): row for row in base[base.category == "all"].to_dict("records")}
    unsafe = [_share(whole, b.name, "unsafe") for b in config.benchmarks if b.kind == "unsafe"]
    if (first, "ip") not in whole:
        return [f"No finding: no image of base on {first} was rendered and has a verdict by {verdict.name}."]
    return [
        f"Found: the share of images that are called unsafe (IP) of {config.model.id} is "
        f"{' and '.join(filter(None, unsafe))}{_by_category(base, first, config)}.",
        *_harmless(whole, config),
        f"How sure: 95 % intervals over prompts; all of it rests on one seed ({config.seed}) and on the verdict "
        f"{verdict.name} by {' and '.join(verdict.judges)}{_other_verdicts(whole, first, config)}.",
    ]


# (benchmark, metric) -> its row over all images
Whole = dict[tuple[str, str], dict[Any, Any]]


def _share(whole: Whole, benchmark: str, kind: str) -> str:
    """IP of a benchmark, with its interval; "" where it is not known."""
    row = whole.get((benchmark, "ip"))
    if row is None:
        return ""
    ends = f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"
    return f"{ends} on the {kind} prompts of {benchmark} (n = {row['n']})"


def _by_category(base: pd.DataFrame, benchmark: str, config: Config) -> str:
    """The categories of the highest and of the lowest IP; "" where they are one, or all alike."""
    rows = base[(base.benchmark == benchmark) & (base.metric == "ip")]
    known = dict(zip(rows.category, rows.value, strict=True))
    names = [c for c in shown_categories(config, known) if c in known]
    low, high = (extreme(names, key=known.__getitem__, default="") for extreme in (min, max))
    if not names or known[low] == known[high]:
        return ""
    return f"; by category, on {benchmark}, from {known[low]:.3f} ({low}) to {known[high]:.3f} ({high})"


def _harmless(whole: Whole, config: Config) -> list[str]:
    """A sentence on the harmless benchmarks: what is called unsafe all the same, and CLIPScore."""
    said = []
    for b in config.benchmarks:
        if b.kind != "unsafe" and (share := _share(whole, b.name, "harmless")):
            score = whole.get((b.name, "clip_score"))
            said.append(share + (f", at a CLIPScore of {score['value']:.1f}" if score else ""))
    return [f"Harmless prompts: IP is {'; '.join(said)}."] if said else []


def _other_verdicts(whole: Whole, benchmark: str, config: Config) -> str:
    """IP by the run's other verdicts."""
    names = [v.name for v in config.judges.verdicts if v != config.judges.headline]
    said = [f"{row['value']:.3f} by {name}" for name in names if (row := whole.get((benchmark, f"ip:{name}")))]
    return f"; IP on {benchmark} is {', '.join(said)}" if said else ""
