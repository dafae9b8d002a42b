"""The attack stage: one attack on one method, every finished prompt kept at once, a prompt set at the end; and the
pairs that adversarial rounds make of what attacks find.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from safetydpo.attacks.case import Case, Given
from safetydpo.attacks.hardening import (
    FACTS,
    IMAGES,
    attacked_prompts,
    chosen,
    found_prompts,
    shown_unsafe,
    with_safe_images,
)
from safetydpo.attacks.registry import ATTACKS
from safetydpo.attacks.rounds import attack_of, attacked, cases_of
from safetydpo.attacks.target import Target
from safetydpo.attacks.vocabulary import forbidden_words
from safetydpo.config.attacks import Attacks, Harden
from safetydpo.config.baselines import Baselines
from safetydpo.config.judges import Judges
from safetydpo.config.model import Model
from safetydpo.config.versions import MACHINE_KEYS
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.eyes import Eyes
from safetydpo.methods.opening import open_method
from safetydpo.methods.registry import method_of
from safetydpo.models.pipeline import load_pipeline
from safetydpo.running.devices import device_of
from safetydpo.running.progress import progress
from safetydpo.storage.files import made_by, read_parquet, write_parquet, write_text
from safetydpo.storage.images import read_images, unpng, write_images

FOUND = ("success", "flagged", "queries", "steps", "loss", "seconds")


class Spent(NamedTuple):
    """Seconds since the model was loaded, the share of them in its passes, and the share of prompts that succeeded."""

    seconds: float
    share: float
    success: float


class Journal:
    """Finished prompts as JSON lines; the first line says of which run they are: others' are thrown away."""

    def __init__(self, path: Path | str, made: dict[str, Any]) -> None:
        self.path, head = Path(path), json.dumps(made, sort_keys=True)
        try:
            lines = self.path.read_text(encoding="utf-8").split("\n")[:-1] if self.path.exists() else []  # whole lines
            kept = lines[1:] if lines and lines[0] == head else []
            self.done: dict[str, dict[str, Any]] = {row["prompt_id"]: row for row in map(json.loads, kept)}
        except (ValueError, KeyError, TypeError):
            raise SafetyDPOError(
                f"{self.path}, the prompts finished until now, is damaged: delete it and rerun, which begins them anew."
            ) from None
        write_text("".join(f"{line}\n" for line in [head, *kept]), self.path)
        self.file = self.path.open("a", encoding="utf-8")

    def put(self, row: dict[str, Any]) -> None:
        """Keep a finished prompt."""
        self.done[row["prompt_id"]] = row
        self.file.write(f"{json.dumps(row)}\n")
        self.file.flush()
        os.fsync(self.file.fileno())

    def remove(self) -> None:
        """The attack is done."""
        self.file.close()
        self.path.unlink(missing_ok=True)


def _row(case: Case) -> dict[str, Any]:
    found = {name: getattr(case, name) for name in FOUND}
    return {"prompt_id": case.prompt_id, "prompt": case.found, "original_prompt": case.original, **found}


def _pairs(paths: Sequence[str]) -> dict[str, tuple[list[str], list[str]]]:
    """Category -> unsafe and safe prompts of the pairs that train."""
    found: dict[str, tuple[list[str], list[str]]] = {}
    for path in paths:
        rows = read_parquet(path)
        for category, pairs in rows[rows.split == "train"].groupby("category"):
            found[str(category)] = list(pairs.unsafe_prompt), list(pairs.safe_prompt)
    return found


def _images(paths: Sequence[str]) -> dict[str, Any]:
    """prompt_id -> uint8 image (h, w, 3)."""
    parts = [read_images(path, ["prompt_id", "image"]) for path in paths]
    return {key: unpng(cell) for part in parts for key, cell in zip(part.prompt_id, part.image, strict=True)}


def prompts_to_attack(prompts: Path | str, config: Attacks) -> pd.DataFrame:
    """The prompts to attack: the first unsafe ones."""
    rows = read_parquet(prompts)
    rows = rows[rows.kind == "unsafe"].head(config.prompts)
    if rows.empty:
        raise SafetyDPOError(f"{prompts} has no unsafe prompts to attack: name another benchmark in attacks.benchmark.")
    return rows.assign(category=[names.split("|")[0] for names in rows.category])


def write_attack(
    name: str,
    method: str,
    config: Attacks,
    model: Model,
    baselines: Baselines,
    judges: Judges,
    *,
    prompts: Path | str,
    pairs: Sequence[str],
    images: Sequence[str],
    answers: Path | str,
    weights: str | None,
    scale: float,
    seed: int,
    journal: Path | str,
    out: Path | str,
) -> Spent:
    """Attack a method: a prompt set with success, flagged, queries (images looked at), steps, loss, seconds.

    pairs: files of prompt pairs, for Ring-A-Bell; images: base's, for UnlearnDiffAtk; answers: folder of what judges
    behind servers answered. A killed job goes on from `journal`.
    """
    rows, words = prompts_to_attack(prompts, config), forbidden_words(config.forbidden, config.forbidden_path)
    digest = hashlib.sha256(Path(weights).read_bytes()).hexdigest() if weights else ""
    made = {"attack": name, "method": method, "model": model.id, "weights": digest, "scale": scale, "seed": seed}
    made |= {"judges": judges.model_dump(exclude=MACHINE_KEYS["judges"]), "config": config.asked(name), "words": words}
    made |= {"prompts": list(rows.prompt_id + " " + rows.prompt)}
    kept = Journal(journal, made)
    if kept.done:
        print(f"{name} on {method}: {len(kept.done)} of {len(rows)} prompts were finished before")
    left = rows[~rows.prompt_id.isin(list(kept.done))]
    pictures = _images(images)
    if ATTACKS[name].images and (lacking := [key for key in left.prompt_id if key not in pictures]):
        raise SafetyDPOError(f"{name}: base's images of {prompts} lack {lacking[0]}: delete {images[0]} and rerun.")
    eyes = Eyes(judges, device_of(model.device), journals=answers)
    target = Target(open_method(method, model, baselines, weights, scale), words, model, eyes, judges.acting)
    given = Given(_pairs(pairs), not method_of(method).kind.aligned, config.rounds)
    attack, rounds = attack_of(name, target, config, given), 1 if ATTACKS[name].control else config.rounds
    cases = cases_of(left, target, name, seed, pictures)
    with progress(None, f"{name} on {method}", total=len(rows), initial=len(kept.done), unit="prompt") as bar:

        def finished(case: Case) -> None:
            kept.put(_row(case))
            bar.update()

        for start in range(0, len(cases), config.together):
            attacked(attack, target, cases[start : start + config.together], rounds, config.success, finished)
    return _write(rows, kept, made, target, out)


def write_attacked(pairs: Sequence[str], config: Harden, number: int, seed: int, out: Path | str) -> None:
    """The prompts that adversarial round `number` attacks: `hardening.attacked_prompts`."""
    rows = attacked_prompts(pairs, config, number, seed)
    write_parquet(rows, out, made_by("harden", round=number, config=config.model_dump(), seed=seed))


def write_hardening_pairs(
    found: dict[str, str],
    known: Sequence[str],
    config: Harden,
    model: Model,
    judges: Judges,
    *,
    answers: Path | str,
    seed: int,
    outs: dict[str, str],
) -> dict[str, int]:
    """Pairs of an adversarial round: a file a category (`outs`), prompts and images in one; how many each got.

    found: attack -> what it found; known: pairs that are there already.
    """
    rows, base = found_prompts(found, known), load_pipeline(model)
    flagged = list(shown_unsafe(rows, list(outs), base, model, judges, answers))
    pairs = with_safe_images(chosen(flagged, config.pairs, seed), base, model)
    header = made_by("harden", config=config.model_dump(), model=model.id, seed=seed, attacks=list(found))
    for category, path in outs.items():
        if own := [row for row in pairs if row["category"] == category]:
            write_images(own, path, header, IMAGES)
        else:  # none is a result too: attacks may find nothing any more
            write_parquet(pd.DataFrame(columns=[*FACTS, *IMAGES]), path, header)
    print(f"{len(rows)} prompts found, {len(flagged)} of them flagged, {len(pairs)} join")
    return {category: sum(row["category"] == category for row in pairs) for category in outs}


def _write(rows: pd.DataFrame, kept: Journal, made: dict[str, Any], target: Target, out: Path | str) -> Spent:
    found = pd.DataFrame([kept.done[key] for key in rows.prompt_id])
    table = found.merge(rows.drop(columns="prompt"), on="prompt_id", validate="one_to_one")
    write_parquet(table, out, made_by("attack", **made))
    kept.remove()
    seconds = target.begun()
    share = target.seconds / seconds
    print(
        f"{table.success.mean():.3f} of {len(table)} prompts reach what was wanted, {table.flagged.mean():.3f} are "
        f"flagged; {table.queries.sum()} images, {table.seconds.sum():.0f} s, {share:.2f} of the time in the model"
    )
    return Spent(seconds, share, float(table.success.mean()))
