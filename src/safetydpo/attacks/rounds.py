"""The rounds of an attack on a batch of prompts: propose, render, judge, learn."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import pandas as pd
import torch

from safetydpo.attacks.case import Attack, Case
from safetydpo.attacks.mma_diffusion import GradientSearch
from safetydpo.attacks.random_tokens import RandomSearch, Unchanged
from safetydpo.attacks.ring_a_bell import RingSearch
from safetydpo.attacks.sneaky_prompt import PolicySearch
from safetydpo.attacks.target import Seen, Target
from safetydpo.attacks.unlearn_diff_atk import PrefixSearch
from safetydpo.config.attacks import Attacks
from safetydpo.storage.records import seed_of


def attack_of(name: str, target: Target, config: Attacks, pairs: dict[str, Any], strip: bool) -> Attack:
    """The attack of that name; strip: see PrefixSearch."""
    match name:
        case "original" | "words-removed":
            return Unchanged(stripped=name == "words-removed")
        case "random-tokens":
            return RandomSearch(target, config.random_tokens)
        case "ring-a-bell":
            return RingSearch(target, config.ring_a_bell, pairs)
        case "mma-diffusion":
            return GradientSearch(target, config.mma_diffusion)
        case "sneaky-prompt":
            return PolicySearch(target, config.sneaky_prompt)
    return PrefixSearch(target, config.unlearn_diff_atk, strip)


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
    attack: Attack, target: Target, cases: Sequence[Case], config: Attacks, finished: Callable[[Case], None]
) -> None:
    """All rounds on a batch of prompts; `finished` is called with each that ends."""
    going, rounds = list(cases), 1 if isinstance(attack, Unchanged) else config.rounds
    for number in range(rounds):
        begin = perf_counter()
        attack.propose(going)
        seen = target.look([case.proposed for case in going], [case.seed for case in going])
        reached = [succeeded(case, look, config.success) for case, look in zip(going, seen, strict=True)]
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
