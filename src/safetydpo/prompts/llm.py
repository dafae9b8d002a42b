"""Prompt pairs from a language model: unsafe prompts per concept, and for each its safe counterpart."""

import asyncio
import gc
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from safetydpo.errors import SafetyDPOError
from safetydpo.llm.journal import Journal, spent_in
from safetydpo.llm.question import Question, list_of
from safetydpo.llm.server import OutOfBudgetError, Server, cost, spent_on
from safetydpo.prompts.concepts import concept_file, read_concepts
from safetydpo.prompts.filters import pair_fault, prompt_fault
from safetydpo.prompts.instructions import Instructions
from safetydpo.prompts.request import COLUMNS, Request
from safetydpo.running.progress import progress
from safetydpo.storage.locks import alone
from safetydpo.storage.records import plain

# Times that a safe counterpart is asked for before its unsafe prompt is given up.
TRIES = 2
# Prompts that the model is shown as known already.
AVOID = 20
PROMPTS = list_of("prompts")


@dataclass
class Candidate:
    """An unsafe prompt and its counterpart; `fault` says why it is not a pair."""

    concept: str
    unsafe_prompt: str
    safe_prompt: str = ""
    fault: str = ""
    detail: str = ""
    similarity: float = math.nan
    unsafe_key: str = ""  # the prompts without case, punctuation and articles
    safe_key: str = ""


class Writer:
    """Asks in rounds: what a round accepts depends on the answers alone, not on the order in which they come."""

    def __init__(self, request: Request, server: Server, concepts: Sequence[str]) -> None:
        self.request, self.server, self.concepts = request, server, list(concepts)
        self.category, self.llm = request.category.name, request.llm
        self.instructions = Instructions(self.llm, self.category)
        self.description, _ = concept_file(self.category, self.llm)
        self.fits = request.fits
        self.asked = dict.fromkeys(self.concepts, 0)  # requests for unsafe prompts of each concept
        self.barren = dict.fromkeys(self.concepts, 0)  # rounds in a row without a new pair
        self.kept: dict[str, list[Candidate]] = {concept: [] for concept in self.concepts}
        self.rejected: list[Candidate] = []
        self.unsafe_seen: set[str] = set()
        self.safe_seen: set[str] = set()
        self.out_of_budget = False
        self.bar: Any = None

    @property
    def quota(self) -> dict[str, int]:
        """Pairs wanted of each concept: prompts.pairs spread over them, or prompts.llm.n of each."""
        total = self.request.config.pairs
        if self.llm.n:
            total = min(total, self.llm.n * len(self.concepts))
        share, extra = divmod(total, len(self.concepts))
        return {concept: share + (i < extra) for i, concept in enumerate(self.concepts)}

    async def run(self) -> None:
        """Ask until every concept has its quota or has run dry, or the budget is spent."""
        quota = self.quota
        with progress(None, self.category, total=sum(quota.values()), unit="pair") as self.bar:
            while not self.out_of_budget:
                missing = {
                    concept: quota[concept] - len(kept)
                    for concept, kept in self.kept.items()
                    if self.barren[concept] < self.llm.rounds
                }
                if not any(missing.values()):
                    break
                await self._round(missing)
        dry = [concept for concept, count in quota.items() if len(self.kept[concept]) < count]
        if self.out_of_budget:
            print(f"{self.category}: stopped at the token budget, prompts.llm.token_budget")
        elif dry:
            print(f"{self.category}: {len(dry)} concepts ran dry after {self.llm.rounds} rounds without a new pair: "
                  f"{', '.join(dry[:10])}{' ...' if len(dry) > 10 else ''}")  # fmt: skip
        else:
            print(f"{self.category}: every concept has its quota")

    async def _round(self, missing: dict[str, int]) -> None:
        asks = list(self._asks(missing))
        answers: dict[tuple[str, int], list[Candidate]] = {}
        waiting = iter(asks)

        async def work() -> None:
            for concept, number, count in waiting:
                answers[concept, number] = await self._ask(concept, number, count)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self.llm.concurrency, len(asks))):
                    group.create_task(work())
        except* SafetyDPOError as errors:
            raise errors.exceptions[0] from None
        before = {concept: len(kept) for concept, kept in self.kept.items()}
        self._accept([c for concept, number, _ in asks for c in answers.get((concept, number), [])])
        for concept in {concept for concept, _, _ in asks}:
            self.barren[concept] = 0 if len(self.kept[concept]) > before[concept] else self.barren[concept] + 1

    def _asks(self, missing: dict[str, int]) -> Iterator[tuple[str, int, int]]:
        """(concept, number of the request, prompts wanted)."""
        size = self.llm.prompts_per_request
        for concept, count in missing.items():
            for start in range(0, count, size):
                yield concept, self.asked[concept], min(size, count - start)
                self.asked[concept] += 1

    async def _ask(self, concept: str, number: int, count: int) -> list[Candidate]:
        """Unsafe prompts of one request, each with its counterpart; nothing where the budget is spent."""
        avoid = [pair.unsafe_prompt for pair in self.kept[concept][-AVOID:]]
        values = {"concept": concept, "count": count, "prompt": "", "avoid": avoid}
        try:
            texts, fault = await self._texts("unsafe", f"{concept}/{number}", **values)
        except OutOfBudgetError:
            return []
        if fault:
            return [self._seen(Candidate(concept, "", fault=fault))]
        found = await asyncio.gather(*(self._counterpart(concept, text) for text in texts[:count]))
        return [pair for pair in found if pair is not None]

    async def _counterpart(self, concept: str, unsafe: str) -> Candidate | None:
        """The pair of an unsafe prompt, with its fault if it has one; None where the budget is spent."""
        if fault := prompt_fault(unsafe, self.fits):
            return self._seen(Candidate(concept, unsafe, fault=fault))
        pair = Candidate(concept, unsafe)
        for turn in range(TRIES):
            values = {"concept": concept, "count": 1, "prompt": unsafe, "avoid": []}
            try:
                texts, pair.fault = await self._texts("safe", f"{concept}/{unsafe}/{turn}", **values)
            except OutOfBudgetError:
                return None
            if texts:
                pair.safe_prompt = texts[0]
                pair.fault = pair_fault(concept, unsafe, pair.safe_prompt, self.fits)
            if not pair.fault:
                break
        return self._seen(pair)

    async def _texts(self, name: str, key: str, **values: Any) -> tuple[list[str], str]:
        if self.out_of_budget:
            raise OutOfBudgetError
        try:
            return await self.server.ask(
                Question(
                    lambda wants_plain: self.instructions.render(
                        name, wants_plain, category=self.category, description=self.description, **values
                    ),
                    PROMPTS,
                    f"{self.category}/{name}/{key}",
                )
            )
        except OutOfBudgetError:
            self.out_of_budget = True
            raise

    def _seen(self, pair: Candidate) -> Candidate:
        """Show a finished candidate; what it is worth is settled at the end of the round."""
        pair.unsafe_key, pair.safe_key = plain(pair.unsafe_prompt), plain(pair.safe_prompt)
        if not pair.fault:
            self.bar.update(1)
        self._show()
        return pair

    def _show(self) -> None:
        sent, written = self.server.sent, self.server.written
        self.bar.set_postfix_str(
            f"rejected {len(self.rejected)}, tokens {sent + written:,}{cost(self.llm, sent, written)}", False
        )

    def _accept(self, found: list[Candidate]) -> None:
        """Settle a round's candidates, in the order of their requests."""
        for pair in found:
            if not pair.fault and pair.unsafe_key in self.unsafe_seen:
                pair.fault = "duplicate"
            self.unsafe_seen.add(pair.unsafe_key)
        self._measure([pair for pair in found if not pair.fault])
        for pair in found:
            if not pair.fault and (pair.safe_key in self.unsafe_seen or pair.unsafe_key in self.safe_seen):
                pair.fault = "safe is unsafe"
            if pair.fault:
                self.rejected.append(pair)
            else:
                self.safe_seen.add(pair.safe_key)
                self.kept[pair.concept].append(pair)
        self.bar.n = sum(map(len, self.kept.values()))
        self._show()

    def _measure(self, found: list[Candidate]) -> None:
        """How near the prompts of each pair are to the model; too far is a fault."""
        if self.request.encoder is None:
            return
        unsafe, safe = [pair.unsafe_prompt for pair in found], [pair.safe_prompt for pair in found]
        for pair, similarity in zip(found, self.request.encoder.similarity(unsafe, safe), strict=True):
            pair.similarity = float(similarity)
            if pair.similarity < (self.request.config.min_similarity or -1):
                pair.fault, pair.detail = "too far", f"cosine {similarity:.3f}"


def pairs(request: Request) -> pd.DataFrame:
    """Candidates in the order of concepts, kept ones first within each round; rejected ones carry their fault."""
    concepts = read_concepts(request.concepts or "")
    gc.freeze()  # what is loaded now stays: collections need not look at it after every few requests
    gc.set_threshold(20_000, 50, 100)
    with alone(request.journals):  # rates and budget are of the run, not of a category
        return asyncio.run(_written(request, concepts))


async def _written(request: Request, concepts: list[str]) -> pd.DataFrame:
    journal = Journal(request.journals / f"{request.category.name}.jsonl")
    journal.renew()
    server = Server(request.llm, "prompts.llm", journal, spent_in(request.journals))
    writer = Writer(request, server, concepts)
    try:
        await writer.run()
    finally:
        await server.close()
        journal.close()
    said = spent_on(request.llm, journal.sent, journal.written)
    print(f"{request.category.name}: {said}; {server.requests} requests now")
    rows = [vars(pair) for concept in concepts for pair in writer.kept[concept]] + list(map(vars, writer.rejected))
    return pd.DataFrame(rows, columns=[*COLUMNS])
