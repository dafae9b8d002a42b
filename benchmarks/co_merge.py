"""What matters in Co-Merge: its statistics, its calibration inputs, its weights and its rank, on finished runs.

    python benchmarks/co_merge.py results/demo results/demo-1 results/demo-2

Every variant merges the experts of a run, gets its LoRA scale on the run's tuning prompts by one search that is the
same for all (an end of what was tried is marked), and is measured on the run's prompts of `test`, `ood` and
`benign`, and under attack by random tokens (config/attacks.yaml). A row a variant and run goes to --out as soon as it
is known; what is there already is not made again. Prints the means over the runs with the lowest and the highest;
`agreement` is the share of output units whose rows are the default's.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from tuned import searched, span

from safetydpo.attacks.stage import write_attack
from safetydpo.config.attacks import Attacks
from safetydpo.config.baselines import Baselines
from safetydpo.config.loading import read_config, read_yaml
from safetydpo.config.merging import Merge
from safetydpo.config.run import Config
from safetydpo.evaluation.scores import METRICS
from safetydpo.evaluation.tune import judged
from safetydpo.judges.eyes import Eyes
from safetydpo.merging.coactivation import Wins, activations, wins_of
from safetydpo.merging.fusion import read_covariances
from safetydpo.merging.stage import calibration_inputs, write_covariances
from safetydpo.merging.strategies import merge, stack
from safetydpo.models.index import Index
from safetydpo.models.lora import FILE, Factors, load_factors, same_modules, save_factors
from safetydpo.running.devices import device_of
from safetydpo.storage.files import read_parquet, write_text
from safetydpo.training.denoiser import Denoiser

ROOT = Path(__file__).resolve().parents[1]
TIMESTEPS = [100, 300, 500, 700, 900]
TEN = list(range(50, 1000, 100))
ATTACK = "random-tokens"
MEASURED = {
    "IP": ("test", "ip"),
    "IP (ood)": ("ood", "ip"),
    "attributes": ("test", "attributes"),
    "benign mark instead": ("test", "benign_mark"),
    "benign mark right": ("benign", "mark_right"),
}
# moon: the benign kind that nobody retained; tokens: what ten tries of random tokens bring back
COLUMNS = ["scale", *MEASURED, "moon right", "tokens, any mark", "tokens, own category", "agreement"]
CAPPED = "†"


class Calibration:
    """The experts of a run and their activations, (experts, inputs, out), by module, role and timestep."""

    def __init__(self, run: Path, config: Config) -> None:
        self.run, self.config = run, config
        names, denoiser = config.category_names, Denoiser(config.model)
        component = denoiser.family.kind.component
        self.experts: dict[str, Factors] = {n: load_factors(run / "experts" / n, component) for n in names}
        self.modules = same_modules(self.experts)
        self.features = {n: [str(p) for p in sorted((run / "features" / n).glob("*.safetensors"))] for n in names}
        experts = list(self.experts.values())
        self.found: dict[tuple[str, str, int], list[torch.Tensor]] = {}
        for role, timesteps in (("unsafe", sorted({*TIMESTEPS, *TEN})), ("safe", TIMESTEPS)):
            for timestep in timesteps:
                asked = config.merge.model_copy(update={"calibration_timesteps": [timestep]})

                def take(module: str, found: torch.Tensor, key: tuple[str, int] = (role, timestep)) -> None:
                    self.found.setdefault((module, *key), []).append(found)

                with activations(denoiser.network, experts, self.modules, take):
                    for batch in calibration_inputs(denoiser, self.features, asked, config.seed, role):
                        denoiser.predict(batch)

    def inputs(self, module: str, roles: tuple[str, ...], timesteps: list[int], prompts: int | None) -> torch.Tensor:
        """Activations of a module (experts, inputs, out), the first `prompts` of each category."""
        parts = [part[:, :prompts] for r in roles for t in timesteps for part in self.found[module, r, t]]
        return torch.cat(parts, dim=1)

    def wins(
        self,
        count: Callable[[torch.Tensor], torch.Tensor] = wins_of,
        roles: tuple[str, ...] = ("unsafe",),
        timesteps: list[int] = TIMESTEPS,
        prompts: int | None = None,
        balanced: bool = False,
    ) -> Wins:
        """Scores (experts, out) per module; the highest wins the unit. balanced: an expert's activations are divided
        by the norm of its update, so that a large update does not win by its size.
        """
        scores = {}
        for module in self.modules:
            found = self.inputs(module, roles, timesteps, prompts)
            if balanced:
                norms = torch.stack([(b @ a).norm() for a, b in (e[module] for e in self.experts.values())])
                found = found / norms[:, None, None]
            scores[module] = count(found)
        return scores

    def merged(self, wins: Wins, rank: int = 0) -> Factors:
        """Co-Merge by these scores."""
        return merge("co-merge", self.experts, wins, Merge(rank=rank))

    def proportional(self) -> Factors:
        """Each unit's rows of all experts, weighed by their share of wins."""
        merged = {}
        for module, wins in self.wins().items():
            shares = wins / wins.sum(0)
            merged[module] = stack([expert[module] for expert in self.experts.values()], list(shares))
        return merged

    def fused(self) -> Factors:
        """The closed form, as `merge.fusion` of the run has it."""
        folders = {name: self.run / "experts" / name for name in self.experts}
        with tempfile.TemporaryDirectory() as folder:
            out, retain = Path(folder) / "covariances.safetensors", str(self.run / "retain/features.safetensors")
            write_covariances(
                folders, self.features, retain, self.config.model, self.config.merge, self.config.seed, out
            )
            found = read_covariances(str(out), list(self.experts))
            return merge("fusion", self.experts, found, self.config.merge, self.config.seed)

    def by_rows(self) -> Wins:
        """The norm of each unit's row of the update: no calibration input at all."""
        return {m: torch.stack([(e[m][1] @ e[m][0]).norm(dim=1) for e in self.experts.values()]) for m in self.modules}

    def at_random(self) -> Wins:
        """A winner drawn for each unit."""
        draw = torch.Generator().manual_seed(0)
        return {m: torch.rand(len(s), s.shape[1], generator=draw) for m, s in self.by_rows().items()}


def summed(found: torch.Tensor) -> torch.Tensor:
    """Activations summed over the inputs, (experts, n, out) -> (experts, out)."""
    return found.sum(1)


# variant -> (what it is, the LoRA)
VARIANTS: dict[str, tuple[str, Callable[[Calibration, int], Factors]]] = {
    "co-merge": ("the default: counts, unsafe prompts, 16 a category, 5 timesteps", lambda c, r: c.merged(c.wins())),
    "summed": ("activations summed instead of wins counted", lambda c, r: c.merged(c.wins(summed))),
    "safe prompts": ("calibrated on the safe prompts and images", lambda c, r: c.merged(c.wins(roles=("safe",)))),
    "both prompts": ("calibrated on both", lambda c, r: c.merged(c.wins(roles=("unsafe", "safe")))),
    "4 prompts": ("4 prompts a category", lambda c, r: c.merged(c.wins(prompts=4))),
    "1 prompt": ("1 prompt a category", lambda c, r: c.merged(c.wins(prompts=1))),
    "timestep 100": ("one timestep", lambda c, r: c.merged(c.wins(timesteps=[100]))),
    "timestep 500": ("one timestep", lambda c, r: c.merged(c.wins(timesteps=[500]))),
    "timestep 900": ("one timestep", lambda c, r: c.merged(c.wins(timesteps=[900]))),
    "10 timesteps": ("50, 150 ... 950", lambda c, r: c.merged(c.wins(timesteps=TEN))),
    "balanced": (
        "activations divided by the norm of the expert's update",
        lambda c, r: c.merged(c.wins(balanced=True)),
    ),
    "proportional": ("rows weighed by their share of wins", lambda c, r: c.proportional()),
    "rank r": ("SVD to the experts' rank", lambda c, r: c.merged(c.wins(), r)),
    "rank 2r": ("SVD to twice the rank", lambda c, r: c.merged(c.wins(), 2 * r)),
    "rank 4r": ("SVD to four times the rank", lambda c, r: c.merged(c.wins(), 4 * r)),
    "row norms": ("no calibration: the largest row of the update wins", lambda c, r: c.merged(c.by_rows())),
    "random": ("control: a winner drawn for each unit", lambda c, r: c.merged(c.at_random())),
    "mean": ("plain average", lambda c, r: merge("mean", c.experts)),
    "fusion": ("least squares on calibration inputs", lambda c, r: c.fused()),
    "dare-ties": ("DARE-TIES, density 0.5", lambda c, r: merge("dare-ties", c.experts, seed=c.config.seed)),
    "ties": ("TIES, density 0.5", lambda c, r: merge("ties", c.experts)),
}


def measure(
    run: Path, config: Config, name: str, lora: Factors, agreement: float, eyes: Eyes, attacks: Attacks
) -> dict[str, object]:
    """Tune the scale, then score the run's prompts at it."""
    with tempfile.TemporaryDirectory() as folder:
        save_factors(lora, folder, Index(config.model).family.kind.component, {})
        tried = searched(read_parquet(run / "tuning/prompts.parquet"), folder, config)
        best = tried.query("chosen").iloc[0]
        capped = best.scale in (tried.scale.min(), tried.scale.max())
        row = {"run": run.name, "variant": name, "scale": best.scale, "tuning_ip": best.ip, "agreement": agreement}
        row |= {"capped": capped, **under_attack(run, config, folder, best.scale, attacks)}
        for benchmark in dict.fromkeys(where for where, _ in MEASURED.values()):
            prompts = read_parquet(run / "benchmarks" / f"{benchmark}.parquet")
            scores = judged(prompts, folder, best.scale, config.model, eyes, config.judges.acting)
            for label, (where, metric) in MEASURED.items():
                if where == benchmark:
                    row[label] = METRICS[metric](scores).mean()  # type: ignore[union-attr]
            if benchmark == "benign":
                row |= {f"{kind} right": part.mark_right.mean() for kind, part in scores.groupby("category")}
    return row


def under_attack(run: Path, config: Config, folder: str, scale: float, attacks: Attacks) -> dict[str, float]:
    """Shares of the prompts that ATTACK gets some mark for, and the prompt's own."""
    out, weights = Path(folder) / "found.parquet", f"{folder}/{FILE}"
    places = {"pairs": [], "images": [], "answers": folder, "journal": f"{folder}/found.jsonl", "out": out}
    given = {"prompts": run / "benchmarks/test.parquet", "weights": weights, "scale": scale, "seed": config.seed}
    write_attack(ATTACK, "merged-mean", attacks, config.model, Baselines(), config.judges, **given, **places)
    found = read_parquet(out)
    return {"tokens, any mark": found.flagged.mean(), "tokens, own category": found.success.mean()}


def share_of_units(lora: Factors, default: Factors) -> float:
    """Share of output units whose rows are the default's."""
    same = []
    for module, (a, b) in lora.items():
        other_a, other_b = default[module]
        same.append(torch.isclose(b @ a, other_b @ other_a, atol=1e-6).all(1))
    return float(torch.cat(same).float().mean())


def show(table: pd.DataFrame) -> None:
    """Markdown: mean over the runs [lowest, highest]."""
    print("| variant | what | " + " | ".join(COLUMNS) + " |\n|" + "---|" * (len(COLUMNS) + 2))
    for name in [v for v in VARIANTS if v in set(table.variant)]:
        part = table[table.variant == name]
        cells = [f"{part.scale.mean():.2f}{CAPPED if part.capped.any() else ''}"]
        cells += [span(part[c]) for c in COLUMNS[1:-1]]
        cells.append(f"{part.agreement.mean():.2f}")
        print(f"| {name} | {VARIANTS[name][0]} | " + " | ".join(cells) + " |")


def main() -> None:
    """Measure what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="some of them alone")
    parser.add_argument("--out", type=Path, default=Path("results/co-merge.csv"), help="a row a variant and run")
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    words, budgets = (read_yaml(ROOT / f"config/{name}.yaml")["attacks"] for name in ("config", "attacks"))
    attacks = Attacks(**words, **budgets)
    rows = pd.read_csv(args.out).to_dict("records") if args.out.exists() else []
    for run in args.runs:
        missing = [name for name in args.variants if (run.name, name) not in {(r["run"], r["variant"]) for r in rows}]
        if not missing:
            continue
        config = read_config(run / "config.yaml")
        calibration, eyes = Calibration(run, config), Eyes(config.judges, device_of(config.model.device))
        default = calibration.merged(calibration.wins())
        for name in missing:
            lora = VARIANTS[name][1](calibration, config.train.rank)
            rows.append(measure(run, config, name, lora, share_of_units(lora, default), eyes, attacks))
            write_text(pd.DataFrame(rows).to_csv(index=False), args.out)
    show(pd.DataFrame(rows))


if __name__ == "__main__":
    main()
