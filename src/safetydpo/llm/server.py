"""One chat-completions server: bounded requests, rates, a token budget, and a sentence for what cannot go on."""

import asyncio
import hashlib
import json
from collections.abc import Callable
from typing import Any

import openai

from safetydpo.config.prompts import LLM
from safetydpo.errors import SafetyDPOError
from safetydpo.llm.connection import Connection, TooLargeError, address_of, key_of, wait_of
from safetydpo.llm.journal import Journal
from safetydpo.llm.replies import Reply, reply_of, schema, texts_of
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
FAILED = "server"


class OutOfBudgetError(Exception):
    """The token budget allows no further request."""


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

    spent: tokens that other categories of the run have used of the budget.
    """

    def __init__(self, llm: LLM, journal: Journal, spent: int = 0) -> None:
        self.llm, self.journal = llm, journal
        self.where = address_of(llm)
        self.sent = self.written = self.requests = self.failures = 0
        self.spent, self.reserved = spent, 0.0
        self.slots = asyncio.Semaphore(llm.concurrency)
        self.request_pace, self.token_pace = Pace(llm.requests_per_minute), Pace(llm.tokens_per_minute)
        self.flying: dict[bytes, asyncio.Task[Reply]] = {}
        self.forms: dict[tuple[str, bool], tuple[dict[str, Any], Any]] = {}
        self.opening = asyncio.Lock()
        self.client: openai.AsyncOpenAI | None = None
        self.secret = Secret()

    async def ask(self, instruction: Callable[[bool], str], key: str, name: str) -> tuple[list[str], str]:
        """The texts under `key` in the reply to an instruction, and the fault if there are none.

        instruction: plain text wanted (else JSON) -> the message; name: what the request's seed derives from.
        Raises OutOfBudgetError, and SafetyDPOError where no further request can succeed.
        """
        plain = self.llm.reply == "text" or (self.llm.reply == "auto" and self.journal.plain)
        body, digest = self._body(instruction(plain), key, name, plain)
        reply = self.journal.get(digest)
        if reply is None:
            if digest not in self.flying:
                self.flying[digest] = asyncio.create_task(self._send(digest, body))
                self.flying[digest].add_done_callback(lambda _: self.flying.pop(digest))
            reply = await self.flying[digest]
        if reply.finish_reason == "plain":  # the server has just refused the schema
            return await self.ask(instruction, key, name)
        return ([], FAILED) if reply.finish_reason == FAILED else texts_of(reply, key, plain)

    def _body(self, message: str, key: str, name: str, plain: bool) -> tuple[dict[str, Any], bytes]:
        """The request, and the digest by which the journal knows it."""
        form, digest = self._form(key, plain)
        seed = {} if self.llm.seed is None else {"seed": seed_of(self.llm.seed, name)}
        digest.update(f"{seed}\n{name}\n{message}".encode())  # without seeds, a second try is the same request
        return {**form, **seed, "messages": [{"role": "user", "content": message}]}, digest.digest()[:16]

    def _form(self, key: str, plain: bool) -> tuple[dict[str, Any], Any]:
        """What is the same in all requests of a kind, and a copy of its hash."""
        if (key, plain) not in self.forms:
            values = {"temperature": self.llm.temperature, "max_tokens": self.llm.max_tokens}
            form = {"model": self.llm.model, **{name: value for name, value in values.items() if value is not None}}
            if not plain:
                wanted = {"name": key, "schema": schema(key), "strict": True}
                form["response_format"] = {"type": "json_schema", "json_schema": wanted}
            form |= self.llm.extra
            self.forms[key, plain] = form, hashlib.sha256(json.dumps(form, sort_keys=True).encode())
        form, digest = self.forms[key, plain]
        return form, digest.copy()

    async def _send(self, digest: bytes, body: dict[str, Any]) -> Reply:
        message = body["messages"][0]["content"]
        async with self.slots:
            client = await self._open()
            guess = self._guess(message)
            if self.llm.token_budget and self.spent + self.reserved + guess > self.llm.token_budget:
                raise OutOfBudgetError
            self.reserved += guess
            try:
                await self.token_pace.wait(guess)
                await self.request_pace.wait(1)
                # not chat.completions.create: checking every field takes longer than all else, and servers differ
                reply = reply_of(await client.post("/chat/completions", cast_to=object, body=body), message)
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

    async def close(self) -> None:
        """Close the connections."""
        if self.client is not None:
            await self.client.close()

    def _keep(self, digest: bytes, reply: Reply) -> None:
        self.journal.put(digest, reply)
        self.requests, self.failures = self.requests + 1, 0
        self.sent, self.written = self.sent + reply.sent, self.written + reply.written
        self.spent += reply.sent + reply.written

    def _guess(self, message: str) -> float:
        """Tokens that a request will use, about: four characters each, and what replies have had so far."""
        mean = self.written / self.requests if self.requests else min(self.llm.max_tokens or 256, 256)
        return len(message) / 4 + mean

    async def _open(self) -> openai.AsyncOpenAI:
        """The client; at first use its key is looked up and the server is asked whether it is there, which is free."""
        if self.client is None:
            async with self.opening:
                if self.client is None:
                    self.secret = Secret(key_of(self.llm))
                    client = openai.AsyncOpenAI(
                        api_key=self.secret.key or "none",
                        base_url=self.where,
                        timeout=self.llm.timeout,
                        max_retries=self.llm.retries,
                        http_client=Connection.in_this_environment(),
                    )
                    try:
                        await self._greet(client)
                    except SafetyDPOError:
                        await client.close()
                        raise
                    self.client = client
        return self.client

    async def _greet(self, client: openai.AsyncOpenAI) -> None:
        try:
            await client.with_options(timeout=min(10, self.llm.timeout), max_retries=1).get("/models", cast_to=object)
        except openai.APIConnectionError as error:
            raise SafetyDPOError(
                f"Nothing answers at {self.where} ({self._said(error)}): start the server, or correct "
                "prompts.llm.base_url."
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
        if self.failures >= self.llm.concurrency:
            raise SafetyDPOError(
                f"{self.where} failed {self.failures} requests in a row, the last with: {self._said(error)}. Answers "
                "until now are kept: run the same command again when it is well."
            )
        print(f"A request failed, to be asked again: {self._said(error)}")
        return Reply("", FAILED, False, 0, 0)

    def _refused(self, error: openai.APIStatusError, structured: bool) -> Reply:
        """A request that the server will not take: by its filter, for its schema, or for good."""
        said, code = self._said(error), str(getattr(error, "code", "") or "")
        if error.status_code in (400, 422):
            if "content" in code and ("filter" in code or "policy" in code):
                return Reply("", "content_filter", True, 0, 0)
            if structured and self.llm.reply == "auto" and any(word in said.lower() for word in SCHEMA_WORDS):
                if not self.journal.plain:
                    print(f"{self.where} takes no JSON schema ({said}): asking for plain text")
                    self.journal.note_plain()
                return Reply("", "plain", False, 0, 0)
        raise self._stop(error) from None

    def _stop(self, error: openai.APIStatusError) -> SafetyDPOError:
        said = self._said(error)
        if error.status_code in (401, 403):
            name = self.llm.api_key_env
            key = f"the key in {name}" if name else "a request without key (prompts.llm.api_key_env)"
            return SafetyDPOError(f"{self.where} refuses {key} ({error.status_code}: {said}).")
        if error.status_code == 404:
            return SafetyDPOError(
                f"{self.where} has no model {self.llm.model} (404: {said}): correct prompts.llm.model or base_url."
            )
        return SafetyDPOError(
            f"{self.where} does not take the request ({error.status_code}: {said}): change prompts.llm (reply, "
            "temperature, max_tokens, seed, extra)."
        )
