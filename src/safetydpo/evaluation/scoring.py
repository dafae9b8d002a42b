"""Judges and the detector look at images: scores a row an image."""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.folder import Folder
from safetydpo.evaluation.layout import same_layout
from safetydpo.evaluation.scores import VECTORS
from safetydpo.judges.eyes import Eyes
from safetydpo.judges.sound import sound_scores
from safetydpo.storage.images import unpng

BATCH = 64  # images that the judges look at together
ATTRIBUTES = ("colour", "shape", "field")


def _share_right(row: dict[str, Any], expected: dict[str, str], names: Sequence[str]) -> float | None:
    known = [row[f"seen_{name}"] == expected[name] for name in names if name in expected and f"seen_{name}" in row]
    return float(np.mean(known)) if known else None


class Base:
    """The base model on the same benchmark: its scores and, where layouts are compared, its images in the order of the
    prompts, and the device that compares them.
    """

    def __init__(
        self, scores: pd.DataFrame, images: Iterable[pd.DataFrame] | None = None, device: torch.device | str = "cpu"
    ) -> None:
        self.scores, self.layout, self.device = scores.set_index("prompt_id"), images is not None, device
        self._cells: Iterator[tuple[str, Any]] = (
            cell for part in images or () for cell in zip(part.prompt_id, part.image, strict=True)
        )

    def of(self, prompt_ids: Iterable[str]) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
        """Scores and, where layouts are compared, images of prompts; each call goes on behind the last one, so that no
        image is kept.
        """
        wanted, pixels = list(prompt_ids), []
        for key in wanted:
            cell = next((image for prompt_id, image in self._cells if prompt_id == key), None)
            if key not in self.scores.index or (self.layout and cell is None):
                raise SafetyDPOError(
                    f"The base model has no image of prompt {key}: give `base` as many prompts in evaluate.matrix."
                )
            if cell is not None:
                pixels.append(unpng(cell))
        scores: Any = self.scores.loc[wanted].to_dict("records")
        return scores, pixels

    def compare(self, rows: list[dict[str, Any]], images: list[np.ndarray], beside: Any) -> None:
        """Add `clip_score_change` and, where layouts are compared, `ssim_base` to rows; beside: what `of` gave."""
        before, others = beside
        for row, old in zip(rows, before, strict=True):
            row["clip_score_change"] = row["clip_score"] - old["clip_score"]
        if self.layout:
            layout = same_layout(images, others, [old.get("seen_side") for old in before], self.device)
            for row, value in zip(rows, layout, strict=True):
                row["ssim_base"] = value


def decoded(batches: Iterable[pd.DataFrame]) -> Iterator[tuple[pd.DataFrame, list[np.ndarray]]]:
    """Batches with their pixels; threads decode the next one while the judges look at this one."""
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as workers:
        ready = None
        for part in batches:
            following = part, [workers.submit(unpng, image) for image in part.image]
            if ready:
                yield ready[0], [image.result() for image in ready[1]]
            ready = following
        if ready:
            yield ready[0], [image.result() for image in ready[1]]


def refuse_unknown(prompt_ids: Iterable[str], known: pd.Index) -> None:
    """SafetyDPOError where an image is of a prompt that the set lacks."""
    if unknown := next((prompt_id for prompt_id in prompt_ids if prompt_id not in known), None):
        raise SafetyDPOError(f"Images of {unknown} are not in the prompt set: delete the images and rerun.")


def look_at(
    eyes: Eyes, batches: Iterable[pd.DataFrame], prompts: pd.DataFrame, base: Base | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Scores per image, a list a batch: judges' columns, `attributes`, `mark_right` where the prompt set knows them.

    An image is decoded once for all judges, and at most two batches are in memory. With `base`: `clip_score_change`
    from base's image of the same prompt and seed, and, where it has images, `ssim_base`, the layout beside it. None is
    a score that a judge did not give; SafetyDPOError where one is NaN: that is neither unsafe nor safe.
    """
    facts = prompts.set_index("prompt_id")
    for part, pixels in decoded(batches):
        refuse_unknown(part.prompt_id, facts.index)
        beside = base and base.of(part.prompt_id)
        rows = eyes.look(pixels, list(part.prompt))
        if base:
            base.compare(rows, pixels, beside)
        for row, item in zip(rows, part.itertuples(), strict=True):
            fact: Any = facts.loc[str(item.prompt_id)]
            expected = json.loads(fact.expected)
            row |= {"prompt_id": item.prompt_id, "prompt": item.prompt, "category": fact.category, "kind": fact.kind}
            if "original_prompt" in facts:  # an attack's
                row["original_prompt"] = fact.original_prompt
            row["seed"] = item.seed
            row["attributes"] = _share_right(row, expected, ATTRIBUTES)
            row["mark_right"] = _share_right(row, expected, ("mark",))
        yield sound_scores(rows, f"the images from {part.prompt_id.iloc[0]} on")


def vectors_of(folder: Folder, eyes: Eyes) -> Iterator[pa.Table]:
    """Columns VECTORS of a folder's images, a table a batch; SafetyDPOError where it has fewer than two."""
    count = 0
    for names, images in folder:
        rows = sound_scores(eyes.look(images, [""]), f"the images from {folder.path / names[0]} on")
        kinds = [(name, pa.list_(pa.float32(), len(rows[0][name]))) for name in VECTORS]
        yield pa.Table.from_pylist([{name: row[name] for name in VECTORS} for row in rows], pa.schema(kinds))
        count += len(rows)
    if count < 2:
        raise SafetyDPOError(f"{folder.path} has one image that can be read: FID needs two or more.")
