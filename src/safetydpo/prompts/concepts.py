"""The concepts of a category: from the config, its concept file, and the language model where more are wanted."""

import asyncio
from pathlib import Path

import pandas as pd

from safetydpo.config.loading import read_yaml
from safetydpo.config.prompts import LLM, Category, Prompts
from safetydpo.errors import SafetyDPOError
from safetydpo.llm.journal import Journal, spent_in
from safetydpo.llm.question import Question, list_of
from safetydpo.llm.replies import refuses
from safetydpo.llm.server import OutOfBudgetError, Server
from safetydpo.prompts.instructions import Instructions
from safetydpo.storage.locks import alone
from safetydpo.storage.records import plain
from safetydpo.storage.tables import read_rows

LONGEST = 60  # characters of a concept
ROUNDS = 4


def concept_file(category: str, llm: LLM) -> tuple[str, list[str]]:
    """Description and concepts of `<category>.yaml`; ("", []) where there is none.

    Raises SafetyDPOError when the file is not what it should be.
    """
    path = Path(llm.concepts) / f"{category}.yaml"
    if not path.exists():
        return "", []
    values = read_yaml(path)
    if not isinstance(values, dict) or set(values) - {"description", "concepts"}:
        raise SafetyDPOError(f"{path} must have the keys `description`, a text, and `concepts`, a list of texts.")
    description, concepts = values.get("description") or "", values.get("concepts") or []
    if not isinstance(description, str):
        raise SafetyDPOError(f"{path}: `description` must be a text, not {type(description).__name__}.")
    wrong = (
        [concept for concept in concepts if not isinstance(concept, str)] if isinstance(concepts, list) else [concepts]
    )
    if wrong:
        kind = f"a {type(wrong[0]).__name__}" if isinstance(wrong[0], dict | list) else repr(wrong[0])
        raise SafetyDPOError(f"{path}: `concepts` must be a list of texts; {kind} is not (quote it?).")
    return " ".join(description.split()), concepts


def concepts_of(category: Category, config: Prompts, journals: Path | str) -> tuple[pd.DataFrame, str]:
    """The concepts of a category (category, concept, source), and its description.

    Raises SafetyDPOError when there are none, or the server fails.
    """
    llm = _llm(config)
    description, listed = concept_file(category.name, llm)
    known = [(concept, "config") for concept in category.concepts] or [(concept, "file") for concept in listed]
    known = [(concept, source) for concept, source in known if plain(concept)]
    if not known and not (description and config.expand_concepts):
        there = sorted(path.stem for path in Path(llm.concepts).glob("*.yaml"))
        raise SafetyDPOError(
            f"Category {category.name} has no concepts: list them in {Path(llm.concepts) / category.name}.yaml or in "
            f"`categories`; there are files for {', '.join(there) or 'no category'}."
        )
    if config.expand_concepts:
        with alone(journals):
            asked = asyncio.run(_proposed(category.name, description, known, config, Path(journals)))
        known += [(concept, "llm") for concept in asked]
    rows = [{"category": category.name, "concept": concept, "source": source} for concept, source in known]
    return pd.DataFrame(rows).drop_duplicates("concept"), description


def read_concepts(path: Path | str) -> list[str]:
    """The concepts of a file that a person may have edited."""
    concepts = [concept.strip() for concept in read_rows(path, ["concept"]).concept if plain(concept)]
    if not concepts:
        raise SafetyDPOError(f"{path} has no concept: delete it and rerun, or add rows.")
    return list(dict.fromkeys(concepts))


def _llm(config: Prompts) -> LLM:
    if config.llm is None:
        raise SafetyDPOError("prompts.llm is needed for source `openai`.")
    return config.llm


async def _proposed(
    category: str, description: str, known: list[tuple[str, str]], config: Prompts, journals: Path
) -> list[str]:
    """New concepts from the language model, up to prompts.expand_concepts; fewer where it has no more."""
    llm, found = _llm(config), {plain(concept): concept for concept, _ in known}
    instructions = Instructions(llm, category)
    journal = Journal(journals / f"{category}-concepts.jsonl")
    journal.renew()
    server = Server(llm, "prompts.llm", journal, spent_in(journals))
    form, wanted = list_of("concepts"), len(found) + config.expand_concepts
    try:
        for turn in range(ROUNDS):
            count = wanted - len(found)
            if count <= 0:
                break
            values = {"category": category, "description": description, "count": count, "avoid": list(found.values())}
            try:
                texts, fault = await server.ask(
                    Question(
                        lambda plain_text, values=values: instructions.render(
                            "concepts", plain_text, concept="", prompt="", **values
                        ),
                        form,
                        f"{category}/concepts/{turn}",
                    )
                )
            except OutOfBudgetError:
                print("Token budget reached while asking for concepts")
                break
            if fault:
                print(f"{category}: a reply with concepts is not used ({fault})")
            for text in texts[:count]:
                if plain(text) and len(text) <= LONGEST and not refuses(text):
                    found.setdefault(plain(text), text)
    finally:
        await server.close()
        journal.close()
    return list(found.values())[len({plain(concept) for concept, _ in known}) :]
