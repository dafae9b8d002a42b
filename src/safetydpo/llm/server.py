"""One chat-completions server: bounded requests, rates, a token budget, and a sentence for what cannot go on."""

import asyncio
import hashlib
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from safetydpo.config.server import ChatServer
from safetydpo.errors import SafetyDPOError
from safetydpo.llm.journal import Journal
from safetydpo.llm.question import Form, Picture, Question, T, unbounded
from safetydpo.llm.replies import BOUND, CONTEXT, FAILED, FORM, NOTHING, Reply
from safetydpo.llm.service import Lost, Service
from safetydpo.storage.records import seed_of

# Seconds that are waited where a server says when to come again; what it is told beyond ends the stage.
LONGEST_WAIT = 120
# The forms that an answer may be asked for in, the best first, as a person would call them.
FORMS = {
    "bounded": "JSON schema with bounds",
    "schema": "JSON schema",
    "object": "JSON object (json_object)",
    "text": "plain text",
}


class OutOfBudgetError(Exception):
    """The token budget allows no further request."""


def spent_on(config: ChatServer, sent: int, written: int) -> str:
    """Tokens, and what they cost where prices are given."""
    return f"{sent:,} tokens sent, {written:,} written{cost(config, sent, written)}"


def cost(config: ChatServer, sent: int, written: int) -> str:
    """`, cost 1.23` where prices are given."""
    prices = config.prices
    return f", cost {(sent * prices.input + written * prices.output) / 1e6:.2f}" if prices else ""


class Pace:
    """Lets amounts through at a steady rate."""

    def __init__(self, per_minute: int | None) -> None:
        self.per_minute, self.free = per_minute, 0.0

    async def wait(self, amount: float) -> None:
        """Wait until `amount` more is within the rate."""
        if self.per_minute:
            now = asyncio.get_running_loop().time()
            begin = max(now, self.free)
            self.free = begin + 60 * amount / self.per_minute
            await asyncio.sleep(begin - now)


class Server:
    """Asks, and keeps every answer in the journal; a request whose answer is there is not sent.

    section: the config's, in the config's words, for errors; spent: tokens that the run has used of the budget.
    """

    def __init__(self, config: ChatServer, section: str, journal: Journal, spent: int = 0) -> None:
        self.config, self.section, self.journal = config, section, journal
        self.service = Service(config, section)
        self.where = self.service.where
        self.sent = self.written = self.requests = self.failures = 0
        self.lost = 0  # tries without an answer
        self.alike = 0  # answers kept in the present form
        self.spent, self.reserved = spent, 0.0
        self.request_pace, self.token_pace = Pace(config.requests_per_minute), Pace(config.tokens_per_minute)
        self.flying: dict[bytes, asyncio.Task[Reply]] = {}
        self.requests_of: dict[tuple[str, str], tuple[dict[str, Any], Any]] = {}
        self._begin()

    def _begin(self) -> None:
        """What belongs to one event loop."""
        self.slots = asyncio.Semaphore(self.config.concurrency)

    async def ask(self, question: Question[T]) -> tuple[T, str]:
        """What the reply to a question says, and the fault where that is nothing.

        Raises OutOfBudgetError, and SafetyDPOError where no further request can succeed.
        """
        question = question._replace(instruction=cache(question.instruction))
        if answer := self.known(question):
            return answer
        while True:  # once for each form at most
            form = self.form
            message, body, digest = self._request(question, form)
            if digest not in self.flying:
                self.flying[digest] = asyncio.create_task(self._send(digest, body, message, question.picture, form))
                self.flying[digest].add_done_callback(lambda _, digest=digest: self.flying.pop(digest))
            reply = await self.flying[digest]
            if reply.finish_reason not in (FORM, BOUND):  # these have just changed the form
                return question.form.read(reply, form == "text")

    def known(self, question: Question[T]) -> tuple[T, str] | None:
        """What `ask` gives, where the journal has the answer, in whatever form it was asked for."""
        forms = [self.form]
        if len(self.journal.offsets) > self.alike:  # answers of before, perhaps in another form
            forms += [form for form in FORMS if form != self.form]
        for form in forms:
            if reply := self.journal.get(self._request(question, form)[2]):
                return question.form.read(reply, form == "text")
        return None

    @property
    def forms(self) -> tuple[str, ...]:
        """The forms that may be asked for, the best first."""
        if "response_format" in self.config.extra:  # the user's own
            return ("text",) if self.config.reply == "text" else ("schema",)
        return {"text": ("text",), "json": ("bounded", "schema"), "auto": tuple(FORMS)}[self.config.reply]

    @property
    def form(self) -> str:
        """The form that is asked for now."""
        return self.journal.form if self.journal.form in self.forms else self.forms[0]

    def _request(self, question: Question[Any], form: str) -> tuple[str, dict[str, Any], bytes]:
        """The message, the rest of the request, and the digest by which the journal knows it."""
        message, name = question.instruction(form == "text"), question.name
        common, digest = self._common(question.form, form)
        seed = {} if self.config.seed is None else {"seed": seed_of(self.config.seed, name)}
        digest.update(f"{seed}\n{name}\n{message}".encode())  # without seeds, a second try is the same request
        if question.picture:
            digest.update(question.picture.digest.encode())
        return message, {**common, **seed}, digest.digest()[:16]

    def _common(self, wanted: Form[Any], form: str) -> tuple[dict[str, Any], Any]:
        """What is the same in all requests of a form, and a copy of its hash."""
        key = f"{wanted.name}\n{wanted.schema}", form
        if key not in self.requests_of:
            values = {"temperature": self.config.temperature, "max_tokens": self.config.max_tokens}
            body: dict[str, Any] = {"model": self.config.model}
            body |= {name: value for name, value in values.items() if value is not None}
            if form == "object":
                body["response_format"] = {"type": "json_object"}
            elif form != "text":
                schema = wanted.schema if form == "bounded" else unbounded(wanted.schema)
                said = {"name": wanted.name, "schema": schema, "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": said}
            body |= self.config.extra
            self.requests_of[key] = body, hashlib.sha256(json.dumps(body, sort_keys=True).encode())
        body, digest = self.requests_of[key]
        return body, digest.copy()

    async def _send(
        self, digest: bytes, body: dict[str, Any], message: str, picture: Picture | None, form: str
    ) -> Reply:
        async with self.slots:
            await self.service.open()
            asked = len(message) // 4 + (picture.tokens if picture else 0)
            content = await asyncio.to_thread(picture.below, message) if picture else message
            reply = await self._tried({**body, "messages": [{"role": "user", "content": content}]}, asked)
        if reply.finish_reason == NOTHING:
            reply = self._without_choices(reply, form)
        if reply.finish_reason in (FORM, BOUND):
            self._fall(form, reply)
        elif reply.finish_reason not in (FAILED, CONTEXT):
            self._keep(digest, reply)
        return reply

    async def _tried(self, body: dict[str, Any], asked: int) -> Reply:
        """The answer of the first try that has one; FAILED where none has."""
        tries = self.config.retries + 1
        for turn in range(1, tries + 1):
            usual = round(self._usual_length())
            with self._reserved(asked + usual):
                await self.token_pace.wait(asked + usual)
                await self.request_pace.wait(1)
                try:
                    reply = await self.service.answer(body, asked)
                except Lost as error:
                    lost = error
                else:
                    self.failures = 0
                    return reply
            self._lose(asked * lost.sent, usual * lost.written)
            if lost.wait > LONGEST_WAIT:
                raise SafetyDPOError(
                    f"{self.where} wants no request for {lost.wait:.0f} seconds ({lost.cause}): run the same command "
                    "again after that; answers until now are kept."
                )
            if lost.final or turn == tries:
                break
            print(f"{self.where}: {lost.cause}, try {turn + 1} of {tries}: {lost.advice}")
            await asyncio.sleep(lost.wait or min(0.5 * 2 ** (turn - 1), 8) * random.uniform(0.75, 1))
        return self._failed(lost)

    @contextmanager
    def _reserved(self, guess: int) -> Iterator[None]:
        """While so many tokens are in flight; OutOfBudgetError where the budget has not as many."""
        if self.config.token_budget and self.spent + self.reserved + guess > self.config.token_budget:
            raise OutOfBudgetError
        self.reserved += guess
        try:
            yield
        finally:
            self.reserved -= guess

    async def settle(self) -> None:
        """Wait until the next request is within the rates: a process that asks then knows nothing of these."""
        await self.token_pace.wait(0)
        await self.request_pace.wait(0)

    async def close(self) -> None:
        """Close the connections. It may be asked again, in another event loop too: counts, rates and budget go on."""
        await self.service.close()
        self._begin()

    def _keep(self, digest: bytes, reply: Reply) -> None:
        self.journal.put(digest, reply)
        self.requests, self.alike = self.requests + 1, self.alike + 1
        self.sent, self.written = self.sent + reply.sent, self.written + reply.written
        self.spent += reply.sent + reply.written

    def _lose(self, sent: int, written: int) -> None:
        """Count a try without an answer, and the tokens that it may have cost."""
        self.journal.note_lost(sent, written)
        self.lost, self.spent = self.lost + 1, self.spent + sent + written

    def _usual_length(self) -> float:
        """Tokens that a reply will have, about: as many as those so far."""
        return self.written / self.requests if self.requests else min(self.config.max_tokens or 256, 256)

    def _failed(self, lost: Lost) -> Reply:
        """A request that its retries did not save; stops when as many in a row failed as are in flight at once."""
        self.failures += 1
        if self.failures >= self.config.concurrency:
            raise SafetyDPOError(
                f"{self.where} failed {self.failures} requests in a row, the last with: {lost.cause}. Answers until "
                f"now are kept: {lost.advice}, and run the same command again when it is well."
            )
        print(f"A request failed, to be asked again: {lost.cause}")
        return Reply(lost.cause, FAILED, False, 0, 0)

    def _without_choices(self, reply: Reply, form: str) -> Reply:
        """An answer without any choice: so do servers that do not know a form, and say so in no other way."""
        if self.journal.answered or not self._later(form, FORM):
            return reply._replace(finish_reason="other")
        self._lose(reply.sent, reply.written)
        return Reply("an answer without choices", FORM, False, 0, 0)

    def _later(self, form: str, refused: str) -> list[str]:
        """The forms after one that the server refused; a schema without bounds, where a bound is what it refused."""
        later = self.forms[self.forms.index(form) + 1 :]
        return [other for other in later if other != "schema" or refused == BOUND]

    def _fall(self, form: str, reply: Reply) -> None:
        """Ask in the next form from now on."""
        if self.form != form:  # another request was told so before
            return
        if "response_format" in self.config.extra:
            raise SafetyDPOError(
                f"{self.where} does not take {self.section}.extra.response_format ({reply.text}): change or remove it."
            )
        later = self._later(form, reply.finish_reason)
        if not later:
            raise SafetyDPOError(
                f"{self.where} does not take the request as {FORMS[form]} ({reply.text}): change {self.section} "
                "(model, reply, extra)."
            )
        print(f"{self.where} takes no {FORMS[form]} ({reply.text}): asking for {FORMS[later[0]]}")
        self.journal.note_form(later[0])
        self.alike = 0
