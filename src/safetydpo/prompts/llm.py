"""Prompt pairs from a language model: unsafe prompts per concept, and for each its safe counterpart."""

import asyncio
import gc
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import pandas as pd

from safetydpo.llm.journal import Journal, spent_in
from safetydpo.llm.question import Form, Question, T, list_of
from safetydpo.llm.server import OutOfBudgetError, Server, cost, spent_on
from safetydpo.prompts.concepts import concept_file, read_concepts
from safetydpo.prompts.critic import Critic
from safetydpo.prompts.instructions import LONGEST, Instructions
from safetydpo.prompts.request import COLUMNS, Request
from safetydpo.prompts.stream import Ask, Candidate, Seen, Stream, across
from safetydpo.running.progress import EVERY, progress
from safetydpo.storage.locks import alone

# Times that a safe counterpart is asked for before its unsafe prompt is given up.
TRIES = 2


def _words_in(tokens: int | None) -> int:
    """Words that so many tokens hold, about."""
    return LONGEST if tokens is None else max(min(LONGEST, tokens * 3 // 4), 1)


class Writer:
    """Keeps the server busy with requests of all concepts, each of which is a stream of its own."""

    def __init__(self, request: Request, server: Server, concepts: Mapping[str, Sequence[str]]) -> None:
        self.request, self.server, self.llm, self.category = request, server, request.llm, request.category.name
        description = concept_file(self.category, self.llm).description
        names, longest = request.config.instructions, _words_in(request.longest)
        self.instructions = Instructions(self.llm, self.category, description, names, longest)
        self.critic = Critic(request, self.instructions, concepts, self._answer)
        patience, size = self.llm.patience, self.llm.prompts_per_request
        self.streams = [
            Stream(concept, quota, size, patience, self._seen()) for concept, quota in self._quotas(list(concepts))
        ]
        self.waiting: deque[Ask] = deque()
        self.out_of_budget = False
        self.bar: Any = None

    def _seen(self) -> Seen:
        """What counts as seen from the start: the pairs that the model is shown."""
        seen = Seen(self.request.config.checks.near_duplicates)
        for example in self.instructions.examples:
            seen.note(Candidate("", example["unsafe_prompt"]))
        return seen

    def _quotas(self, concepts: Sequence[str]) -> list[tuple[str, int]]:
        """Pairs wanted of each concept: prompts.pairs spread over them, or prompts.llm.n of each."""
        total = self.request.config.pairs
        if self.llm.n:
            total = min(total, self.llm.n * len(concepts))
        share, extra = divmod(total, len(concepts))
        return [(concept, share + (i < extra)) for i, concept in enumerate(concepts)]

    async def run(self) -> list[Candidate]:
        """Ask until every concept has its quota or has run dry, or the budget is spent.

        Returns pairs, up to the quota of each concept in their order, then what was rejected, with its fault.
        """
        total = sum(stream.quota for stream in self.streams)
        with progress(None, self.category, total=total, unit="pair") as self.bar:
            telling = asyncio.create_task(self._tell())
            try:
                while not self.out_of_budget and self._send():
                    await self._work()
                    across(self.streams, self._seen())
            finally:
                telling.cancel()
        if self.out_of_budget:
            for stream in self.streams:
                stream.close(self._measure)
            across(self.streams, self._seen())
        self._say_why_it_ended()
        pairs = [pair for stream in self.streams for pair in stream.kept[: stream.quota]]
        return pairs + [pair for stream in self.streams for pair in stream.rejected]

    def _send(self) -> bool:
        """Requests of all concepts in turn, so that all begin; whether there are any."""
        asks = [stream.asks() for stream in self.streams]
        for turn in range(max(map(len, asks), default=0)):
            self.waiting.extend(its[turn] for its in asks if turn < len(its))
        return bool(self.waiting)

    async def _work(self) -> None:
        """Until nothing waits or is under way; what a request lacked goes before those that wait."""
        under_way: set[asyncio.Task[tuple[Ask, list[Candidate] | None]]] = set()
        try:
            while under_way or (self.waiting and not self.out_of_budget):
                while self.waiting and len(under_way) < self.llm.concurrency and not self.out_of_budget:
                    ask = self.waiting.popleft()
                    if not ask.stream.dry:
                        under_way.add(asyncio.create_task(self._ask(ask)))
                if not under_way:
                    continue
                done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for ask, found in await asyncio.gather(*done):
                    if found is not None:
                        self.waiting.extendleft(reversed(ask.stream.answered(ask, found, self._measure)))
                self._show()
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def _ask(self, ask: Ask) -> tuple[Ask, list[Candidate] | None]:
        """Unsafe prompts of one request, each with its counterpart; None where the budget is spent before the first."""
        concept, name = ask.stream.concept, f"{ask.stream.concept}/{ask.number}"
        values = {"concept": concept, "count": ask.count, "prompt": "", "avoid": list(ask.avoid)}
        with suppress(OutOfBudgetError):
            texts, fault = await self._texts("unsafe", name, **values)
            if fault == "context" and ask.avoid:
                texts, fault = await self._texts("unsafe", name, **{**values, "avoid": []})
            if fault:
                return ask, [Candidate(concept, "", fault=fault)]
            pairs = [Candidate(concept, text) for text in texts[: ask.count]]
            first = {pair.unsafe_key: pair for pair in reversed(pairs)}
            found = await asyncio.gather(
                *(self._whole(ask.stream, pair, first[pair.unsafe_key] is pair) for pair in pairs)
            )
            return ask, [pair for pair in found if pair is not None]
        return ask, None

    async def _whole(self, stream: Stream, pair: Candidate, first: bool) -> Candidate | None:
        """A pair with its counterpart, or with its fault; None where the budget is spent.

        Nothing is asked for one that is known to repeat another, which is settled in its turn.
        """
        pair.fault = self.critic.fault_of_unsafe(pair)
        if pair.fault or not first or stream.seen.fault(pair)[0]:
            return pair
        values = {"concept": pair.concept, "count": 1, "prompt": pair.unsafe_prompt, "avoid": []}
        try:
            for turn in range(TRIES):
                texts, fault = await self._texts("safe", f"{pair.concept}/{pair.unsafe_prompt}/{turn}", **values)
                pair.safe_prompt, pair.fault, pair.detail = (texts or [""])[0], fault, ""
                if not fault:
                    pair.fault, pair.detail = await self.critic.fault_of_pair(pair)
                if not pair.fault:
                    break
        except OutOfBudgetError:
            return None
        return pair

    async def _texts(self, name: str, key: str, **values: Any) -> tuple[list[str], str]:
        return await self._answer(name, key, list_of("prompts", values["count"]), **values)

    async def _answer(self, name: str, key: str, form: Form[T], **values: Any) -> tuple[T, str]:
        """What the model answers to an instruction, in a form, and the fault where that is nothing."""
        if self.out_of_budget:
            raise OutOfBudgetError
        question = Question(
            lambda plain: self.instructions.render(name, plain, **values), form, f"{self.category}/{name}/{key}"
        )
        try:
            return await self.server.ask(question)
        except OutOfBudgetError:
            self.out_of_budget = True
            raise

    def _measure(self, found: list[Candidate]) -> None:
        """How near the prompts of each pair are to the model; too far is a fault."""
        if self.request.encoder is None or not found:
            return
        unsafe, safe = [pair.unsafe_prompt for pair in found], [pair.safe_prompt for pair in found]
        for pair, similarity in zip(found, self.request.encoder.similarity(unsafe, safe), strict=True):
            pair.similarity = float(similarity)
            if pair.similarity < (self.request.config.min_similarity or -1):
                pair.fault, pair.detail = "too far", f"cosine {similarity:.3f}"

    def _show(self) -> None:
        self.bar.n = sum(min(len(stream.kept), stream.quota) for stream in self.streams)
        self.bar.set_postfix_str(self._counts(), refresh=False)
        self.bar.update(0)

    def _counts(self) -> str:
        """`rejected 12 (7 duplicate, 5 refusal), tokens 31,200`."""
        counts = Counter(pair.fault for stream in self.streams for pair in stream.rejected)
        reasons = ", ".join(f"{count} {fault}" for fault, count in counts.most_common(3))
        sent, written = self.server.sent, self.server.written
        return (
            f"rejected {counts.total()}{f' ({reasons})' if reasons else ''}, tokens {sent + written:,}"
            f"{cost(self.llm, sent, written)}"
        )

    async def _tell(self) -> None:
        """A line a minute on the terminal, on which a job says nothing else."""
        while True:
            await asyncio.sleep(EVERY)
            self.request.tell(f"{self.category}: {self.bar.n} of {self.bar.total} pairs, {self._counts()}")

    def _say_why_it_ended(self) -> None:
        dry = [stream.concept for stream in self.streams if stream.missing]
        if self.out_of_budget:
            print(f"{self.category}: stopped at the token budget, prompts.llm.token_budget")
        elif dry:
            print(f"{self.category}: {len(dry)} concepts ran dry, after {self.llm.patience} requests in a row without "
                  f"a new pair: {', '.join(dry[:10])}{' ...' if len(dry) > 10 else ''}")  # fmt: skip
        else:
            print(f"{self.category}: every concept has its quota")


def pairs(request: Request) -> pd.DataFrame:
    """Candidates in the order of concepts: kept ones, then rejected ones, which carry their fault."""
    concepts = read_concepts(request.concepts or "")
    gc.freeze()  # what is loaded now stays: collections need not look at it after every few requests
    gc.set_threshold(20_000, 50, 100)
    with alone(request.journals):  # rates and budget are of the run, not of a category
        return asyncio.run(_written(request, concepts))


async def _written(request: Request, concepts: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    journal = Journal(request.journals / f"{request.category.name}.jsonl")
    journal.renew()
    server = Server(request.llm, "prompts.llm", journal, spent_in(request.journals))
    try:
        found = await Writer(request, server, concepts).run()
    finally:
        await server.close()
        journal.close()
    said = spent_on(request.llm, journal.sent, journal.written)
    lost = f", and {server.lost} tries without an answer" if server.lost else ""
    print(f"{request.category.name}: {said}; {server.requests} requests now{lost}")
    return pd.DataFrame(list(map(vars, found)), columns=[*COLUMNS])
