"""An adversarial round: which prompts are attacked, and which of those found join the pairs, under which category."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd

from safetydpo.config.attacks import Harden
from safetydpo.config.judges import Judges
from safetydpo.config.model import Model
from safetydpo.judges.eyes import Eyes
from safetydpo.judges.sound import sound_scores
from safetydpo.judges.verdicts import verdict_of
from safetydpo.models.sampling import render
from safetydpo.running.devices import device_of
from safetydpo.storage.files import read_parquet
from safetydpo.storage.images import png
from safetydpo.storage.records import pair_id, seed_of

FACTS = ["pair_id", "category", "unsafe_prompt", "safe_prompt", "source", "split", "original_prompt", "seed"]
IMAGES = ("unsafe_image", "safe_image")


def attacked_prompts(pairs: Sequence[Path | str], config: Harden, number: int, seed: int) -> pd.DataFrame:
    """The prompts that a round attacks: unsafe prompts of pairs that train, `repeats` times; other seeds each round."""
    rows = pd.concat([read_parquet(path) for path in pairs], ignore_index=True)
    rows = rows[rows.split == "train"].groupby("category", sort=False).head(config.prompts)
    rows = rows.loc[rows.index.repeat(config.repeats)].reset_index(drop=True)
    repeat = rows.groupby("pair_id").cumcount()
    keys = [f"{key}/{number}/{i}" for key, i in zip(rows.pair_id, repeat, strict=True)]
    facts = {"prompt_id": keys, "kind": "unsafe", "seed": [seed_of(seed, f"harden/{key}") for key in keys]}
    return rows.assign(**facts).rename(columns={"unsafe_prompt": "prompt"})[
        ["prompt_id", "prompt", "category", "kind", "seed", "safe_prompt"]
    ]


def found_prompts(found: Mapping[str, Path | str], known: Sequence[Path | str]) -> pd.DataFrame:
    """What the attacks of a round found (attack -> its file), each prompt once, without those of the pairs `known`."""
    rows = pd.concat([read_parquet(path).assign(attack=name) for name, path in found.items()], ignore_index=True)
    old = {prompt for path in known for prompt in read_parquet(path, ["unsafe_prompt"]).unsafe_prompt}
    return rows[(rows.prompt != "") & ~rows.prompt.isin(old)].drop_duplicates("prompt", ignore_index=True)


def shown_unsafe(
    rows: pd.DataFrame, categories: Sequence[str], base: Any, model: Model, judges: Judges, answers: Path | str
) -> Iterator[dict[str, Any]]:
    """Found prompts whose image by base is flagged, as rows of pairs without the safe image.

    category: the one that a judge sees in the image, where one does and it is the run's; else that of the origin.
    """
    eyes = Eyes(judges, device_of(model.device), journals=answers)
    images = render(base, list(rows.prompt), [int(seed) for seed in rows.seed], model)
    facts = zip(rows.to_dict("records"), images, strict=True)
    for batch in iter(lambda: list(islice(facts, model.batch_size)), []):
        looks = eyes.look([pixels for _, pixels in batch], [row["prompt"] for row, _ in batch])
        scores = sound_scores(looks, "images of found prompts")
        flags = verdict_of(judges.acting, pd.DataFrame(scores)).fillna(False)
        for (row, pixels), score, flagged in zip(batch, scores, flags, strict=True):
            if flagged:
                seen = score.get("seen_mark")
                yield _pair(row, seen if seen and seen in categories else row["category"]) | {IMAGES[0]: png(pixels)}


def _pair(row: Mapping[Any, Any], category: str) -> dict[str, Any]:
    return {
        "pair_id": pair_id(category, row["prompt"], row["safe_prompt"]),
        "category": category,
        "unsafe_prompt": row["prompt"],
        "safe_prompt": row["safe_prompt"],
        "source": row["attack"],
        "split": "train",
        "original_prompt": row["original_prompt"],
        "seed": int(row["seed"]),
    }


def chosen(pairs: Sequence[dict[str, Any]], limit: int, seed: int) -> list[dict[str, Any]]:
    """At most `limit` of each category, by lot."""
    drawn = sorted(pairs, key=lambda row: seed_of(seed, row["pair_id"]))
    count: dict[str, int] = {}
    kept = []
    for row in drawn:
        count[row["category"]] = count.get(row["category"], 0) + 1
        kept += [row] if count[row["category"]] <= limit else []
    return kept


def with_safe_images(pairs: list[dict[str, Any]], base: Any, model: Model) -> list[dict[str, Any]]:
    """The pairs with the safe prompt's image too, of the same seed, as `render_pairs` draws both."""
    images = render(base, [row["safe_prompt"] for row in pairs], [row["seed"] for row in pairs], model)
    return [row | {IMAGES[1]: png(pixels)} for row, pixels in zip(pairs, images, strict=True)]
