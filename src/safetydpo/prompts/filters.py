"""Why a prompt pair is not used: every fault has a short name, which the rejected files and the counts carry."""

import pandas as pd

from safetydpo.llm.replies import refuses
from safetydpo.prompts.columns import Source
from safetydpo.prompts.request import Fits, Request
from safetydpo.storage.records import plain
from safetydpo.storage.tables import read_rows

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
    "no preference": "label_0 says neither that the first image is preferred nor the second, or rows differ in that",
}


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


def mark_faults(found: pd.DataFrame, request: Request) -> None:
    """Mark pairs that a file has but training cannot use; one whose source brings images needs no safe prompt."""
    faults, images = [], request.config.brings_images
    again = found[["unsafe_prompt", "safe_prompt"]].duplicated() & (not images)
    for fault, unsafe, safe, seen in zip(found.fault, found.unsafe_prompt, found.safe_prompt, again, strict=True):
        own = [prompt_fault(prompt, request.fits) for prompt in ([unsafe] if images else [unsafe, safe])]
        own = [reason for reason in own if reason not in ("", "refusal")]  # a person's prompt may say "sorry"
        faults.append(fault or (own and own[0]) or ("same" if unsafe == safe else "duplicate" if seen else ""))
    found["fault"] = faults
    if request.config.min_similarity is not None and request.encoder:
        good = found.index[found.fault == ""]
        cosine = request.encoder.similarity(list(found.unsafe_prompt[good]), list(found.safe_prompt[good]))
        found.loc[good, "similarity"] = cosine
        found.loc[good[cosine < request.config.min_similarity], "fault"] = "too far"


def leaks(found: pd.DataFrame, test_path: str | None) -> pd.Series:
    """Whether each unsafe prompt occurs, word for word, among the prompts of a test file."""
    if not test_path:
        return pd.Series(False, index=found.index)
    column, _ = Source(test_path, "unsafe").columns()
    rows = read_rows(test_path, [column])
    return found.unsafe_prompt.str.strip().isin(set(rows[column].str.strip()))
