"""Why a prompt pair is not used: every fault has a short name, which the rejected files and the counts carry."""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pandas as pd

from safetydpo.config.prompts import Filters
from safetydpo.llm.replies import refuses
from safetydpo.prompts.columns import Source
from safetydpo.prompts.overlap import Near, content_words, words_of
from safetydpo.prompts.request import Fits, Request
from safetydpo.storage.records import plain
from safetydpo.storage.tables import read_rows

# fault -> what it means, in the words of the docs and the report.
FAULTS = {
    "refusal": "the language model refused, or its provider's filter did",
    "malformed": "the reply is not what was asked for: broken JSON, another schema, no choices",
    "truncated": "the reply was cut at max_tokens",
    "context": "the request is longer than the server's context",
    "server": "the request failed for good, after its retries",
    "empty": "a prompt is blank",
    "no letters": "a prompt is made of digits and signs",
    "too short": "a prompt has fewer words than filters.min_words",
    "url": "a prompt holds an address",
    "question": "a prompt is a question, not a scene",
    "several": "a numbered list of prompts stands in one",
    "script": "a fifth of a prompt's letters are not of filters.script",
    "echo": "the prompt, or most of it, stands in the instruction",
    "junk": "the published placeholder made of dashes",
    "unpaired": "no partner with the same number",
    "duplicate": "the same pair or, from a language model, an unsafe prompt that differs only in case or punctuation",
    "near duplicate": "the words of the unsafe prompt overlap an earlier one's by filters.near_duplicates or more",
    "too long": "more words than filters.max_words, or longer than the text window of the model to be aligned",
    "same": "safe and unsafe prompt are equal",
    "concept missing": "the unsafe prompt has no word of the concept",
    "concept kept": "a word of the concept, or of another one of the category, is in the safe prompt",
    "nothing removed": "every word of the unsafe prompt is still in the safe one",
    "too much removed": "the safe prompt has a smaller share of the unsafe one's words than filters.min_kept",
    "too much added": "more of the safe prompt's words than filters.max_added are not the unsafe one's",
    "unrelated": "both: too much is removed and too much added",
    "judge": "the language model, asked what the prompts show, does not agree that they are a pair",
    "too far": "the pair's text embeddings are less alike than prompts.min_similarity",
    "safe is unsafe": "the safe prompt occurs as an unsafe one",
    "leak": "the unsafe prompt occurs in prompts.test_path",
    "image": "an image is missing or unreadable",
    "no preference": "label_0 says neither that the first image is preferred nor the second, or rows differ in that",
}
_NEW = "ask for more variety: add concepts, raise prompts.llm.temperature, or use a larger model"
_CLOSER = (
    "say in instructions/safe.txt what a small change is, show pairs with prompts.llm.examples, or use a larger model"
)
_CLEARER = (
    "say in the instructions what a prompt is, and show examples with prompts.llm.examples, or use a larger model"
)
# fault -> what to do where it is why most pairs are not used.
ADVICE = {
    "empty": f"fill in both prompts of each row; where a model writes, {_CLEARER}",
    **dict.fromkeys(("no letters", "url", "question", "several"), _CLEARER),
    "safe is unsafe": _CLOSER,
    "refusal": "use a model that takes part in such work, or say in the instructions what it is for",
    "malformed": "set prompts.llm.reply (json where the server takes schemas, else text), or use a larger model",
    "truncated": "raise prompts.llm.max_tokens, or lower prompts_per_request",
    "context": "raise the server's context per slot, or lower prompts.llm.max_tokens and prompts_per_request",
    "server": "see what the server says above: lower prompts.llm.concurrency or raise its timeout",
    "too short": "lower prompts.filters.min_words, or say in the instructions what a scene is",
    "script": "say the language in the instructions, or set prompts.filters.script: null",
    "echo": "the model repeats what it is told: use a larger one, or other prompts.llm.examples",
    "junk": "take another file: its safe prompts were never written",
    "unpaired": "check the numbers of column `image` in prompts.path",
    "duplicate": _NEW,
    "near duplicate": f"{_NEW}; or raise prompts.filters.near_duplicates",
    "too long": "say in instructions/unsafe.txt how long a prompt may be, or raise prompts.filters.max_words",
    "concept missing": "add `words:` to the concept file or set prompts.llm.words; where no word names the concept, "
    "set prompts.filters.concept_words: false",
    "concept kept": "look at the concept's `words:`, whether one is too common, and at instructions/safe.txt",
    "too much removed": f"lower prompts.filters.min_kept, or {_CLOSER}",
    "too much added": f"raise prompts.filters.max_added, or {_CLOSER}",
    "unrelated": _CLOSER,
    "same": _CLOSER,
    "nothing removed": _CLOSER,
    "judge": "read some of the pairs: where you would accept them, set prompts.filters.judge: false",
    "too far": "lower prompts.min_similarity by the distribution in the report",
    "leak": "take other pairs, or set prompts.drop_leaks: false",
    "image": "unpack the folder again: prompts.path names images that are not there",
    "no preference": "check label_0 in prompts.path",
}
_NOISE = {
    "refusal": refuses,
    "no letters": lambda prompt: not any(map(str.isalpha, prompt)),
    "url": re.compile(r"https?://|\bwww\.", re.IGNORECASE).search,
    "question": re.compile(r"\?\s*$").search,
    "several": re.compile(r"[.!?;,]\s+\(?\d{1,2}[.)]\s+[\"“]?[A-Z]").search,
}
RUN = 6  # words in a row that no model writes by chance


def prompt_fault(prompt: str, config: Filters, fits: Fits | None = None) -> str:
    """What is wrong with one prompt by itself; "" if nothing is."""
    if not prompt.strip(" \t\r\n.-"):
        return "empty"
    if config.noise and (fault := next((fault for fault, found in _NOISE.items() if found(prompt)), "")):
        return fault
    if (words := len(words_of(prompt))) < config.min_words:
        return "too short"
    if config.max_words and words > config.max_words:
        return "too long"
    if config.script and not prompt.isascii():
        letters = [character for character in prompt if character.isalpha()]
        of_it = sum(unicodedata.name(letter, "").startswith(config.script.upper()) for letter in letters)
        if of_it <= 0.8 * len(letters):
            return "script"
    return "too long" if fits and not fits(prompt) else ""


def echoes(prompt: str, instruction: str) -> bool:
    """Whether a prompt, or more than half of it and six words in a row, stands in an instruction.

    Of a safe prompt the instruction is taken without the unsafe one, which it must be like.
    """
    said, words = _words_in_a_row(instruction), words_of(prompt)
    run = min(len(words), max(RUN, len(words) // 2 + 1))
    return bool(words) and any(f" {' '.join(words[i : i + run])} " in said for i in range(len(words) - run + 1))


@lru_cache(maxsize=256)
def _words_in_a_row(instruction: str) -> str:
    return f" {' '.join(words_of(instruction))} "


def shows(prompt: str, words: Sequence[str]) -> bool:
    """Whether a prompt has one of the words in whatever form; of a word of several parts, all of them."""
    said = content_words(prompt)
    return any(parts and parts <= said for parts in map(content_words, words))


def concept_fault(words: Sequence[str], unsafe: str, config: Filters) -> str:
    """Whether an unsafe prompt fails to show its concept; words: the concept's, itself among them."""
    return "concept missing" if config.concept_words and words and not shows(unsafe, words) else ""


def pair_fault(words: Sequence[str], unsafe: str, safe: str, config: Filters, fits: Fits | None = None) -> str:
    """What is wrong with a safe prompt as the counterpart of an unsafe one; "" if nothing is.

    words: that the safe one must not show, the concept's and perhaps those of others.
    """
    if fault := prompt_fault(safe, config, fits):
        return fault
    if plain(safe) == plain(unsafe):
        return "same"
    kept, added = shares(unsafe, safe)
    if config.min_kept is not None and kept == 1:
        return "nothing removed"
    if config.concept_words and shows(safe, words):
        return "concept kept"
    removed = config.min_kept is not None and kept < config.min_kept
    more = config.max_added is not None and added > config.max_added
    return "unrelated" if removed and more else "too much removed" if removed else "too much added" if more else ""


def shares(unsafe: str, safe: str) -> tuple[float, float]:
    """Share of the unsafe prompt's words that the safe one has, and of the safe one's words that are new, 0 to 1."""
    before, after = content_words(unsafe), content_words(safe)
    return len(before & after) / max(len(before), 1), len(after - before) / max(len(after), 1)


def mark_faults(found: pd.DataFrame, request: Request) -> None:
    """Mark pairs that a file has but training cannot use, and those that the filters drop; measure the others."""
    images, config = request.config.brings_images, request.config
    again = found[["unsafe_prompt", "safe_prompt"]].duplicated() & (not images)
    rows = zip(found.concept, found.unsafe_prompt, found.safe_prompt, strict=True)
    own = [_file_fault(concept, unsafe, safe, request) for concept, unsafe, safe in rows]
    found["fault"] = [
        fault or reason or ("duplicate" if seen else "")
        for fault, reason, seen in zip(found.fault, own, again, strict=True)
    ]
    if not images:
        both = [shares(unsafe, safe) for unsafe, safe in zip(found.unsafe_prompt, found.safe_prompt, strict=True)]
        found[["kept", "added"]] = np.reshape(both, (-1, 2))
    if config.checks.near_duplicates:
        _mark_near(found, config.checks.near_duplicates)
    if config.min_similarity is not None and request.encoder:
        good = found.index[found.fault == ""]
        cosine = request.encoder.similarity(list(found.unsafe_prompt[good]), list(found.safe_prompt[good]))
        found.loc[good, "similarity"] = cosine
        found.loc[good[cosine < config.min_similarity], "fault"] = "too far"


def _file_fault(concept: str, unsafe: str, safe: str, request: Request) -> str:
    """What is wrong with a row; one whose source brings images has no safe prompt."""
    config, words = request.config.checks, [concept] if plain(concept) else []
    fault = prompt_fault(unsafe, config, request.fits)
    if not request.config.brings_images:
        fault = fault or prompt_fault(safe, config, request.fits) or ("same" if unsafe == safe else "")
    if fault or not request.config.filters:
        return fault
    fault = concept_fault(words, unsafe, config)
    return fault or ("" if request.config.brings_images else pair_fault(words, unsafe, safe, config))


def _mark_near(found: pd.DataFrame, threshold: float) -> None:
    near: Near[str] = Near(threshold)
    for row in found.index[found.fault == ""]:
        prompt = str(found.at[row, "unsafe_prompt"])
        if (first := near.find(content_words(prompt))) is not None:
            found.loc[row, ["fault", "detail"]] = ["near duplicate", f"of: {first}"]
        else:
            near.add(prompt, content_words(prompt))


def leaks(found: pd.DataFrame, test_path: str | None) -> pd.Series:
    """Whether each unsafe prompt occurs, word for word, among the prompts of a test file."""
    if not test_path:
        return pd.Series(False, index=found.index)
    column, _ = Source(test_path, "unsafe").columns()
    rows = read_rows(test_path, [column])
    return found.unsafe_prompt.str.strip().isin(set(rows[column].str.strip()))
