"""Columns of people's prompt files: what published files call the prompts, their categories and settings."""

from collections.abc import Sequence
from typing import NamedTuple

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.records import SEEDS
from safetydpo.storage.tables import heads_of

# Of prompts of whatever kind. `prompt` is taken before all others, which may be other versions of it.
PLAIN = ("prompt", "text", "caption", "image_prompt")  # HUB's COCO has `text`, OVERT `image_prompt`
# MMA-Diffusion, P4D and the like; ERR (three, which one must choose among); Ring-A-Bell; ViSU; CoPro; OVERT. Not
# `target_prompt`: what an attack started from.
UNSAFE = (
    *("adv_prompt", "adversarial_prompt", "direct_prompt", "indirect_prompt"),
    *("sensitive prompt", "nsfw", "unsafe_prompt", "unsafe_image_prompt"),
)
HARMLESS = ("clean_prompt", "normal prompt", "safe", "safe_prompt", "benign_image_prompt")
OF_KIND = {"unsafe": UNSAFE, "safe": HARMLESS, "benign": HARMLESS, "over-refusal": HARMLESS}
CATEGORIES = ("category", "categories", "concept_name", "tag")
# I2P's names, those that it has on the hub, and our own.
SETTINGS = {
    "guidance_scale": ("evaluation_guidance", "sd_guidance_scale", "guidance_scale"),
    "height": ("sd_image_height", "height"),
    "width": ("sd_image_width", "width"),
}


class Source(NamedTuple):
    """A file of prompts. kind: of prompts that are looked for, "" for all; column: of prompts, None: one that is known;
    todo: what the user can do where several are, or none.
    """

    path: str
    kind: str = ""
    column: str | None = None
    todo: str = "call the one that is meant `prompt`"

    def columns(self) -> tuple[str, list[str]]:
        """Name of the column of prompts, and those that there are, in lower case; SafetyDPOError lists them where it is
        not clear which has the prompts.
        """
        known = [self.column.strip()] if self.column else [*PLAIN, *OF_KIND.get(self.kind, ())]
        others = [*CATEGORIES, *SEEDS, *(name for names in SETTINGS.values() for name in names)]
        heads = [[name.casefold() for name in head] for head in heads_of(self.path, [*known, *others])]
        fitting = [([name for name in known if name.casefold() in head], head) for head in heads]
        found, head = next((pair for pair in fitting if pair[0]), ([], heads[0]))
        if "prompt" in found or len(found) == 1:
            return found[0], head
        kind = f"{self.kind} prompts" if self.kind else "prompts"
        if found:
            raise SafetyDPOError(f"{self.path} has several columns of {kind}, {', '.join(found)}: {self.todo}.")
        wanted = f"`{known[0]}`" if self.column else f"`prompt`, nor another of {kind}"
        raise SafetyDPOError(f"{self.path} has no column {wanted}; it has {', '.join(head)[:500]}: {self.todo}.")


def first_of(names: Sequence[str], head: Sequence[str]) -> str | None:
    """The first of the names that is in a file's head."""
    return next((name for name in names if name in head), None)
