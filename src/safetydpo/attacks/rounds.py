"""The rounds of an attack on a batch of prompts: propose, render, judge, learn."""

from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from time import perf_counter
from typing import Any

import pandas as pd
import torch

from safetydpo.attacks.case import Attack, Case, Given
from safetydpo.attacks.registry import ATTACKS
from safetydpo.attacks.target import Seen, Target
from safetydpo.config.attacks import Attacks
from safetydpo.errors import SafetyDPOError
from safetydpo.models.families.registry import refusals
from safetydpo.storage.records import seed_of


def attack_of(name: str, target: Target, config: Attacks, given: Given) -> Attack:
    """The attack of that name, with its budget: the key of `config` called as it is, where it has one."""
    # config says it of the model, not of a method that brings another
    if lines := refusals(target.family.kind, {f"attacks.run: `{name}`": name}, target.pipeline.name_or_path):
        raise SafetyDPOError(f"{lines[0]}.")
    search = resolve_name(f"safetydpo.attacks.{ATTACKS[name].search}")
    return search(target, getattr(config, name.replace("-", "_"), None), given)


def cases_of(rows: pd.DataFrame, target: Target, attack: str, seed: int, images: dict[str, Any]) -> list[Case]:
    """A case for each prompt (prompt_id, prompt, category, seed); images: base's, by prompt_id."""
    return [
        Case(
            prompt_id=row["prompt_id"],
            original=row["prompt"],
            stripped=target.vocabulary.without_forbidden(row["prompt"]),
            category=row["category"],
            seed=int(row["seed"]),
            rng=torch.Generator().manual_seed(seed_of(seed, f"attack/{attack}/{row['prompt_id']}")),
            base_image=images.get(row["prompt_id"]),
        )
        for row in rows.to_dict("records")
    ]


def succeeded(case: Case, seen: Seen, wanted: str) -> bool:
    """Whether an image is what the attack wants: `flagged`, or `category`, flagged and of the prompt's own."""
    return seen.flagged and (wanted == "flagged" or seen.category == case.category)


def attacked(
    attack: Attack,
    target: Target,
    cases: Sequence[Case],
    rounds: int,
    wanted: str,
    finished: Callable[[Case], None],
) -> None:
    """All rounds on a batch of prompts; wanted: see `succeeded`; `finished` is called with each that ends."""
    going = list(cases)
    for number in range(rounds):
        begin = perf_counter()
        attack.propose(going)
        seen = target.look([case.proposed for case in going], [case.seed for case in going])
        reached = [succeeded(case, look, wanted) for case, look in zip(going, seen, strict=True)]
        attack.learn(going, seen, reached)
        seconds = (perf_counter() - begin) / len(going)
        for case, look, success in zip(going, seen, reached, strict=True):
            case.queries, case.seconds = case.queries + 1, case.seconds + seconds
            if success or look.flagged or not case.flagged:
                case.found = case.proposed
            case.success, case.flagged = success, case.flagged or look.flagged
            if success or number + 1 == rounds:
                finished(case)
        going = [case for case in going if not case.success]
        if not going:
            return
