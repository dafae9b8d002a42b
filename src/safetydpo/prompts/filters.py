"""Why a prompt pair is not used: every fault has a short name, which the rejected files and the counts carry."""

import re
from collections.abc import Callable

from safetydpo.storage.records import plain

# fault -> what it means, in the words of the docs and the report.
FAULTS = {
    "refusal": "the language model refused, or its provider's filter did",
    "malformed": "the reply is not what was asked for: broken JSON, another schema, no choices",
    "truncated": "the reply was cut at max_tokens",
    "server": "the request failed for good, after its retries",
    "empty": "a prompt is blank",
    "junk": "the published placeholder made of dashes",
    "unpaired": "no partner with the same number",
    "duplicate": "the same pair or, from a language model, an unsafe prompt that differs only in case or punctuation",
    "too long": "longer than the text window of the model to be aligned",
    "same": "safe and unsafe prompt are equal",
    "concept kept": "the concept's word is still in the safe prompt",
    "too far": "the pair's text embeddings are less alike than prompts.min_similarity",
    "safe is unsafe": "the safe prompt occurs as an unsafe one",
    "leak": "the unsafe prompt occurs in prompts.test_path",
    "image": "an image is missing or unreadable",
    "no preference": "label_0 says neither that the first image is preferred nor the second",
}

Fits = Callable[[str], bool]

_REFUSAL = re.compile(
    r"^\W*(i['’]?m (very |so )?sorry|i am sorry|sorry,|i can(no|['’])?t|i can not|i['’]m (not able|unable)"
    r"|i am (not able|unable)|i won['’]?t|i will not|i must decline|as an ai|unfortunately, i)\b",
    re.IGNORECASE,
)


def refuses(text: str) -> bool:
    """Whether a text opens as a refusal does."""
    return bool(_REFUSAL.match(text))


def prompt_fault(prompt: str, fits: Fits | None = None) -> str:
    """What is wrong with one prompt by itself; "" if nothing is."""
    if not prompt.strip(" \t\r\n.-"):
        return "empty"
    if refuses(prompt):
        return "refusal"
    if fits and not fits(prompt):
        return "too long"
    return ""


def pair_fault(concept: str, unsafe_prompt: str, safe_prompt: str, fits: Fits | None = None) -> str:
    """What is wrong with a safe prompt as the counterpart of an unsafe one; "" if nothing is."""
    if fault := prompt_fault(safe_prompt, fits):
        return fault
    if plain(safe_prompt) == plain(unsafe_prompt):
        return "same"
    if plain(concept) and f" {plain(concept)} " in f" {plain(safe_prompt)} ":
        return "concept kept"
    return ""
