"""The concepts of a category, each with words by which prompts show it: from the config, its concept file, and the
language model where more are wanted.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from safetydpo.config.loading import read_yaml
from safetydpo.config.prompts import LLM, Category, Prompts
from safetydpo.errors import SafetyDPOError
from safetydpo.llm.journal import Journal, spent_in
from safetydpo.llm.question import Question, list_of
from safetydpo.llm.replies import refuses
from safetydpo.llm.server import OutOfBudgetError, Server
from safetydpo.prompts.instructions import Instructions
from safetydpo.prompts.overlap import content_words, spellings, words_of
from safetydpo.storage.locks import alone
from safetydpo.storage.records import plain
from safetydpo.storage.tables import read_rows

LONGEST = 60  # characters of a concept
PHRASE = 4  # words of a concept, at most
ROUNDS = 4


class ConceptFile(NamedTuple):
    """What a category's file says. words: of a concept; under "" those of every concept."""

    description: str
    concepts: list[str]
    words: dict[str, list[str]]

    def words_of(self, concept: str) -> list[str]:
        """Words by which prompts show a concept, beside its own name."""
        own = (words for name, words in self.words.items() if not name or spellings(name) & spellings(concept))
        return list(dict.fromkeys(word for words in own for word in words))


def concept_file(category: str, llm: LLM) -> ConceptFile:
    """What `<category>.yaml` says; nothing where there is none.

    Raises SafetyDPOError when the file is not what it should be.
    """
    path = Path(llm.concepts) / f"{category}.yaml"
    values = read_yaml(path) if path.exists() else {}
    if not isinstance(values, dict) or set(values) - {"description", "concepts", "words"}:
        raise SafetyDPOError(
            f"{path} must have the keys `description`, a text, and `concepts`, a list of texts, and may have `words`."
        )
    description, words = values.get("description") or "", values.get("words") or []
    if not isinstance(description, str):
        raise SafetyDPOError(f"{path}: `description` must be a text, not {type(description).__name__}.")
    given = words if isinstance(words, dict) else {"": words}
    return ConceptFile(
        " ".join(description.split()),
        _texts(values.get("concepts") or [], f"{path}: `concepts`"),
        {str(name): _texts(its, f"{path}: `words`{f' of {name}' if name else ''}") for name, its in given.items()},
    )


def _texts(value: Any, where: str) -> list[str]:
    wrong = [text for text in value if not isinstance(text, str)] if isinstance(value, list) else [value]
    if wrong:
        kind = f"a {type(wrong[0]).__name__}" if isinstance(wrong[0], dict | list) else repr(wrong[0])
        raise SafetyDPOError(f"{where} must be a list of texts; {kind} is not (quote it?).")
    return value


def concepts_of(category: Category, config: Prompts, journals: Path | str) -> tuple[pd.DataFrame, str]:
    """The concepts of a category (category, concept, source, words, words_source), and its description.

    Raises SafetyDPOError when there are none, or the server fails.
    """
    llm, path = _llm(config), Path(_llm(config).concepts) / f"{category.name}.yaml"
    file = concept_file(category.name, llm)
    known = [(concept, "config") for concept in category.concepts] or [(concept, "file") for concept in file.concepts]
    known = [(concept, source) for concept, source in known if plain(concept)]
    if not known and not (file.description and config.expand_concepts):
        there = sorted(other.stem for other in path.parent.glob("*.yaml"))
        raise SafetyDPOError(
            f"Category {category.name} has no concepts: list them in {path} or in `categories`; there are files for "
            f"{', '.join(there) or 'no category'}."
        )
    names = set().union(*map(spellings, [*category.concepts, *file.concepts]))
    if stranger := next((name for name in file.words if name and not spellings(name) & names), None):
        raise SafetyDPOError(f"{path}: `words` has {stranger}, which is none of its concepts: correct or remove it.")
    asked: dict[str, list[str]] = {}
    if config.expand_concepts or llm.words:
        with alone(journals):
            new, asked = asyncio.run(_asked(category.name, file, [name for name, _ in known], config, Path(journals)))
        known += [(concept, "llm") for concept in new]
    if not known:
        raise SafetyDPOError(
            f"Category {category.name} has no concepts, and the language model gave none that will do (see the log): "
            f"list some in {path}, or ask a larger model."
        )
    rows = [
        {"category": category.name, "concept": concept, "source": source}
        | _words_columns(file.words_of(concept), asked.get(concept, []))
        for concept, source in known
    ]
    return pd.DataFrame(rows).drop_duplicates("concept"), file.description


def _words_columns(listed: list[str], asked: list[str]) -> dict[str, str]:
    sources = [name for name, words in (("file", listed), ("llm", asked)) if words]
    return {"words": ", ".join([*listed, *asked]), "words_source": ", ".join(sources)}


def read_concepts(path: Path | str) -> dict[str, list[str]]:
    """Concepts of a file that a person may have edited, each with its words, itself the first of them."""
    rows = read_rows(path, ["concept"], ["words"])
    given = rows["words"] if "words" in rows else [""] * len(rows)
    found: dict[str, list[str]] = {}
    for concept, words in zip(rows.concept.str.strip(), given, strict=True):
        if plain(concept):
            more = [word.strip() for word in words.split(",") if plain(word)]
            found[concept] = list(dict.fromkeys([*found.get(concept, [concept]), *more]))
    if not found:
        raise SafetyDPOError(f"{path} has no concept: delete it and rerun, or add rows.")
    return found


def _llm(config: Prompts) -> LLM:
    if config.llm is None:
        raise SafetyDPOError("prompts.llm is needed for source `openai`.")
    return config.llm


async def _asked(
    category: str, file: ConceptFile, known: list[str], config: Prompts, journals: Path
) -> tuple[list[str], dict[str, list[str]]]:
    """What the language model adds: new concepts, and words of each concept, as far as they are asked for."""
    llm = _llm(config)
    journal = Journal(journals / f"{category}-concepts.jsonl")
    journal.renew()
    server = Server(llm, "prompts.llm", journal, spent_in(journals))
    proposer = Proposer(category, file.description, llm, server)
    try:
        new = await proposer.concepts(known, config.expand_concepts) if config.expand_concepts else []
        every = [*known, *new] if llm.words else []
        words = await asyncio.gather(*(proposer.words(concept, file.words_of(concept)) for concept in every))
        return new, dict(zip(every, words, strict=True))
    finally:
        await server.close()
        journal.close()


class Proposer:
    """Asks the language model for concepts of a category and for their words, and refuses what is none."""

    def __init__(self, category: str, description: str, llm: LLM, server: Server) -> None:
        self.category, self.llm, self.server = category, llm, server
        names = ["concepts", *(["words"] if llm.words else [])]
        self.instructions = Instructions(llm, category, description, names)

    async def concepts(self, known: list[str], count: int) -> list[str]:
        """New concepts, up to a count; fewer where the model has no more."""
        found: list[str] = []
        seen, refused, turn = set().union(*map(spellings, [self.category, *known])), Counter[str](), 0
        while len(found) < count and turn < ROUNDS:
            values = {"count": count - len(found), "avoid": [*known, *found]}
            for text in await self._texts("concepts", str(turn), **values):
                if fault := _phrase_fault(text, seen):
                    refused[fault] += 1
                elif len(found) < count:
                    found.append(text)
                    seen |= spellings(text)
            turn += 1
        reasons = ", ".join(f"{number} {fault}" for fault, number in refused.items())
        print(f"{self.category}: {len(found)} of {count} concepts that were asked for came, in {turn} requests"
              f"{f'; not used: {reasons}' if reasons else ''}")  # fmt: skip
        return found

    async def words(self, concept: str, known: list[str]) -> list[str]:
        """Words by which prompts show a concept, up to prompts.llm.words, and none that is known."""
        values = {"concept": concept, "count": self.llm.words, "avoid": [concept, *known]}
        seen, found = set().union(*map(spellings, values["avoid"])), []
        for text in await self._texts("words", concept, **values):
            if not _phrase_fault(text, seen):
                found.append(text.replace(",", " "))
                seen |= spellings(text)
        return found[: self.llm.words]

    async def _texts(self, name: str, key: str, **values: Any) -> list[str]:
        """What the model answers to an instruction; nothing, and a line that says why, where that is no list."""
        question = Question(
            lambda plain_text: self.instructions.render(name, plain_text, **values),
            list_of(name, values["count"]),
            f"{self.category}/{name}/{key}",
        )
        try:
            texts, fault = await self.server.ask(question)
        except OutOfBudgetError:
            print(f"Token budget reached while asking for {name}")
            return []
        if fault:
            print(f"{self.category}: a reply with {name} is not used ({fault})")
        return texts


def _phrase_fault(text: str, seen: Iterable[Any]) -> str:
    """Why a text is no new concept; "" where it is one. seen: spellings of those that are known."""
    if refuses(text):
        return "refusal"
    if len(words_of(text)) > PHRASE or len(text) > LONGEST or text.endswith((".", "!", "?")):
        return "sentence"
    if text.casefold().startswith("how to "):
        return "sentence"
    if not content_words(text) or not any(map(str.isalpha, text)):
        return "no letters"
    return "known" if spellings(text) & set(seen) else ""
