"""One chat-completions server: bounded requests, rates, a token budget, and a sentence for what cannot go on."""

import asyncio
import hashlib
import json
from typing import Any

import openai

from safetydpo.config.server import ChatServer
from safetydpo.errors import SafetyDPOError
from safetydpo.llm.connection import Connection, TooLargeError, address_of, key_of, wait_of
from safetydpo.llm.journal import Journal
from safetydpo.llm.question import Form, Picture, Question, T
from safetydpo.llm.replies import FAILED, Reply, reply_of
from safetydpo.llm.secret import Secret
from safetydpo.storage.records import seed_of

# What the client has already retried: the request is given up, the next round asks anew.
TRANSIENT = (
    openai.APIConnectionError,  # also its timeout
    openai.InternalServerError,
    openai.RateLimitError,
    openai.ConflictError,
    openai.APIResponseValidationError,
    TooLargeError,
    ValueError,  # no JSON, or JSON of another kind
    RecursionError,  # JSON deeper than anything meant
)
# Seconds that the client waits where a server says when to come again; what it is told beyond ends the stage.
LONGEST_WAIT = 120
SCHEMA_WORDS = ("response_format", "json_schema", "schema", "structured", "grammar")


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
        self.where = address_of(config, section)
        self.sent = self.written = self.requests = self.failures = 0
        self.spent, self.reserved = spent, 0.0
        self.request_pace, self.token_pace = Pace(config.requests_per_minute), Pace(config.tokens_per_minute)
        self.flying: dict[bytes, asyncio.Task[Reply]] = {}
        self.requests_of: dict[tuple[str, bool], tuple[dict[str, Any], Any]] = {}
        self.secret, self.greeted = Secret(), False
        self._begin()

    def _begin(self) -> None:
        """What belongs to one event loop."""
        self.slots, self.opening = asyncio.Semaphore(self.config.concurrency), asyncio.Lock()
        self.client: openai.AsyncOpenAI | None = None

    async def ask(self, question: Question[T]) -> tuple[T, str]:
        """What the reply to a question says, and the fault where that is nothing.

        Raises OutOfBudgetError, and SafetyDPOError where no further request can succeed.
        """
        if answer := self.known(question):
            return answer
        plain = self._asks_plain
        message, body, digest = self._request(question, plain)
        if digest not in self.flying:
            self.flying[digest] = asyncio.create_task(self._send(digest, body, message, question.picture))
            self.flying[digest].add_done_callback(lambda _: self.flying.pop(digest))
        reply = await self.flying[digest]
        if reply.finish_reason == "plain":  # the server has just refused the schema
            return await self.ask(question)
        return question.form.read(reply, plain)

    def known(self, question: Question[T]) -> tuple[T, str] | None:
        """What `ask` gives, where the journal has the answer, in whatever form it was asked for."""
        plain = self._asks_plain
        for form in (True, False) if plain and self.config.reply == "auto" else (plain,):
            if reply := self.journal.get(self._request(question, form)[2]):
                return question.form.read(reply, form)
        return None

    @property
    def _asks_plain(self) -> bool:
        """Whether plain text is asked for."""
        return self.config.reply == "text" or (self.config.reply == "auto" and self.journal.plain)

    def _request(self, question: Question[Any], plain: bool) -> tuple[str, dict[str, Any], bytes]:
        """The message, the rest of the request, and the digest by which the journal knows it."""
        message, name = question.instruction(plain), question.name
        common, digest = self._common(question.form, plain)
        seed = {} if self.config.seed is None else {"seed": seed_of(self.config.seed, name)}
        digest.update(f"{seed}\n{name}\n{message}".encode())  # without seeds, a second try is the same request
        if question.picture:
            digest.update(question.picture.digest.encode())
        return message, {**common, **seed}, digest.digest()[:16]

    def _common(self, form: Form[Any], plain: bool) -> tuple[dict[str, Any], Any]:
        """What is the same in all requests of a form, and a copy of its hash."""
        if (form.name, plain) not in self.requests_of:
            values = {"temperature": self.config.temperature, "max_tokens": self.config.max_tokens}
            body: dict[str, Any] = {"model": self.config.model}
            body |= {name: value for name, value in values.items() if value is not None}
            if not plain:
                wanted = {"name": form.name, "schema": form.schema, "strict": True}
                body["response_format"] = {"type": "json_schema", "json_schema": wanted}
            body |= self.config.extra
            self.requests_of[form.name, plain] = body, hashlib.sha256(json.dumps(body, sort_keys=True).encode())
        body, digest = self.requests_of[form.name, plain]
        return body, digest.copy()

    async def _send(self, digest: bytes, body: dict[str, Any], message: str, picture: Picture | None) -> Reply:
        async with self.slots:
            client = await self._open()
            asked = len(message) // 4 + (picture.tokens if picture else 0)
            guess = asked + self._usual_length()
            if self.config.token_budget and self.spent + self.reserved + guess > self.config.token_budget:
                raise OutOfBudgetError
            self.reserved += guess
            try:
                await self.token_pace.wait(guess)
                await self.request_pace.wait(1)
                content = await asyncio.to_thread(picture.below, message) if picture else message
                body = {**body, "messages": [{"role": "user", "content": content}]}
                # not chat.completions.create: checking every field takes longer than all else, and servers differ
                reply = reply_of(await client.post("/chat/completions", cast_to=object, body=body), asked)
                reply = reply._replace(text=self.secret.out_of_answer(reply.text))
            except TRANSIENT as error:
                return self._failed(error)
            except openai.APIStatusError as error:
                reply = self._refused(error, "response_format" in body)
            finally:
                self.reserved -= guess
        if reply.finish_reason not in ("plain", FAILED):
            self._keep(digest, reply)
        return reply

    async def settle(self) -> None:
        """Wait until the next request is within the rates: a process that asks then knows nothing of these."""
        await self.token_pace.wait(0)
        await self.request_pace.wait(0)

    async def close(self) -> None:
        """Close the connections. It may be asked again, in another event loop too: counts, rates and budget go on."""
        if self.client is not None:
            await self.client.close()
        self._begin()

    def _keep(self, digest: bytes, reply: Reply) -> None:
        self.journal.put(digest, reply)
        self.requests, self.failures = self.requests + 1, 0
        self.sent, self.written = self.sent + reply.sent, self.written + reply.written
        self.spent += reply.sent + reply.written

    def _usual_length(self) -> float:
        """Tokens that a reply will have, about: as many as those so far."""
        return self.written / self.requests if self.requests else min(self.config.max_tokens or 256, 256)

    async def _open(self) -> openai.AsyncOpenAI:
        """The client; at first use its key is looked up and the server is asked whether it is there, which is free."""
        if self.client is None:
            async with self.opening:
                if self.client is None:
                    self.secret = Secret(key_of(self.config, self.section))
                    client = openai.AsyncOpenAI(
                        api_key=self.secret.key or "none",
                        base_url=self.where,
                        timeout=self.config.timeout,
                        max_retries=self.config.retries,
                        http_client=Connection.in_this_environment(),
                    )
                    try:
                        if not self.greeted:
                            await self._greet(client)
                    except SafetyDPOError:
                        await client.close()
                        raise
                    self.client, self.greeted = client, True
        return self.client

    async def _greet(self, client: openai.AsyncOpenAI) -> None:
        try:
            await client.with_options(timeout=min(10, self.config.timeout), max_retries=1).get(
                "/models", cast_to=object
            )
        except openai.APIConnectionError as error:
            raise SafetyDPOError(
                f"Nothing answers at {self.where} ({self._said(error)}): start the server, or correct "
                f"{self.section}.base_url."
            ) from None
        except openai.AuthenticationError as error:
            raise self._stop(error) from None
        except (openai.OpenAIError, ValueError, RecursionError):
            pass  # many servers list no models

    def _said(self, error: Exception) -> str:
        """What an error says, in a line, without the key: cut only after the key is out of it."""
        cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else None
        text = str(getattr(error, "message", "") or error)
        text = f"{text} {cause}" if cause else text
        text = self.secret.out_of(text)[:10_000]
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:300]

    def _failed(self, error: Exception) -> Reply:
        """A request that its retries did not save; stops when as many in a row failed as are in flight at once."""
        if getattr(error, "code", None) == "insufficient_quota":
            raise SafetyDPOError(f"{self.where}: no credit left ({self._said(error)}); answers until now are kept.")
        wait = wait_of(error.response.headers) if isinstance(error, openai.APIStatusError) else 0
        if wait > LONGEST_WAIT:
            raise SafetyDPOError(
                f"{self.where} wants no request for {wait:.0f} seconds ({self._said(error)}): run the same command "
                "again after that; answers until now are kept."
            )
        self.failures += 1
        if self.failures >= self.config.concurrency:
            raise SafetyDPOError(
                f"{self.where} failed {self.failures} requests in a row, the last with: {self._said(error)}. Answers "
                "until now are kept: run the same command again when it is well."
            )
        print(f"A request failed, to be asked again: {self._said(error)}")
        return Reply(self._said(error), FAILED, False, 0, 0)

    def _refused(self, error: openai.APIStatusError, structured: bool) -> Reply:
        """A request that the server will not take: by its filter, for its schema, or for good."""
        said, code = self._said(error), str(getattr(error, "code", "") or "")
        if error.status_code in (400, 422):
            if "content" in code and ("filter" in code or "policy" in code):
                return Reply("", "content_filter", True, 0, 0)
            if structured and self.config.reply == "auto" and any(word in said.lower() for word in SCHEMA_WORDS):
                if not self.journal.plain:
                    print(f"{self.where} takes no JSON schema ({said}): asking for plain text")
                    self.journal.note_plain()
                return Reply("", "plain", False, 0, 0)
        raise self._stop(error) from None

    def _stop(self, error: openai.APIStatusError) -> SafetyDPOError:
        said = self._said(error)
        if error.status_code in (401, 403):
            name = self.config.api_key_env
            key = f"the key in {name}" if name else f"a request without key ({self.section}.api_key_env)"
            return SafetyDPOError(f"{self.where} refuses {key} ({error.status_code}: {said}).")
        if error.status_code == 404:
            return SafetyDPOError(
                f"{self.where} has no model {self.config.model} (404: {said}): correct {self.section}.model or "
                "base_url."
            )
        return SafetyDPOError(
            f"{self.where} does not take the request ({error.status_code}: {said}): change {self.section} (model, "
            "reply, temperature, max_tokens, seed, extra)."
        )
