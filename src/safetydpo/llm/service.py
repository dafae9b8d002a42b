"""What is behind a server's address: its connection, key and models, one try at a time, and what its errors mean."""

import asyncio
import difflib
from typing import Any, NoReturn

import httpx2
import openai

from safetydpo.config.server import ChatServer
from safetydpo.errors import SafetyDPOError
from safetydpo.llm.connection import Connection, TooLargeError, address_of, key_of, wait_of
from safetydpo.llm.models import names_in, same_model
from safetydpo.llm.refusals import Kind, Said, error_in, kind_of, said_in
from safetydpo.llm.replies import BOUND, CONTEXT, FORM, Reply, parsed, reply_of
from safetydpo.llm.secret import Secret


class Lost(Exception):  # noqa: N818 - what became of a try, not a mistake
    """A try without an answer.

    advice: what to do about it; sent, written: whether the server may count the request, and an answer; wait: seconds
    that it asks for; final: the same request is not tried again.
    """

    def __init__(
        self, cause: str, advice: str, sent: bool = True, written: bool = False, wait: float = 0, final: bool = False
    ) -> None:
        super().__init__(cause)
        self.cause, self.advice, self.wait, self.final = cause, advice, wait, final
        self.sent, self.written = sent, written


class Service:
    """A chat-completions service; section: the config's, in the config's words, for errors."""

    def __init__(self, config: ChatServer, section: str) -> None:
        self.config, self.section = config, section
        self.where, self.place = address_of(config, section)
        self.secret, self.greeted = Secret(), False
        self.models: list[str] = []  # as far as the server lists them
        self.answering: set[str] = set()  # names of models in answers
        self.refused = False  # whether its filter has stopped a request
        self._begin()

    def _begin(self) -> None:
        """What belongs to one event loop."""
        self.opening, self.client = asyncio.Lock(), None

    async def open(self) -> None:
        """At first use the key is looked up and the server is asked whether it is there, which is free."""
        if self.client is None:
            async with self.opening:
                if self.client is None:
                    self.client = await self._opened()

    async def _opened(self) -> openai.AsyncOpenAI:
        self.secret = Secret(key_of(self.config, self.section))
        client = openai.AsyncOpenAI(
            api_key=self.secret.key or "none",
            base_url=self.where,
            timeout=self.config.timeout,
            max_retries=0,
            http_client=Connection.in_this_environment(),
        )
        try:
            if not self.greeted:
                await self._greet(client)
        except SafetyDPOError:
            await client.close()
            raise
        self.greeted = True
        return client

    async def close(self) -> None:
        """Close the connections; it may be opened again, in another event loop too."""
        if self.client is not None:
            await self.client.close()
        self._begin()

    async def _greet(self, client: openai.AsyncOpenAI) -> None:
        patient = client.with_options(timeout=min(10, self.config.timeout), max_retries=1)
        try:
            self.models = names_in(parsed(await patient.get("/models", cast_to=object)))
        except openai.APIConnectionError as error:
            raise SafetyDPOError(
                f"Nothing answers at {self.where} ({self._shown(error)}): start the server, or correct {self.place}."
            ) from None
        except openai.AuthenticationError as error:
            self._stop("key", self._status(401, said_in(error.response.text)))
        except (openai.OpenAIError, ValueError, RecursionError):
            pass  # many servers list no models
        model = self.config.model
        if self.models and not any(same_model(model, name) for name in self.models):
            print(f"{self.where} lists no {model} but {self._listed()}: correct {self.section}.model if it is none of "
                  "these by another name")  # fmt: skip

    def _listed(self) -> str:
        """Some of the models that the server lists, those first whose names are most like ours."""
        names = difflib.get_close_matches(self.config.model, self.models[:1000], n=10, cutoff=0)
        return self._clean(", ".join(names), 600) + (" ..." if len(self.models) > len(names) else "")

    async def answer(self, body: dict[str, Any], asked: int) -> Reply:
        """One try; asked: about as many tokens as the request has.

        Its finish_reason is CONTEXT, FORM or BOUND, and its text what the server says, where the server takes no such
        request. Raises Lost where it may take it later, and SafetyDPOError where it never will.
        """
        assert self.client is not None, "it is open"
        wait = 0.0
        try:
            # not chat.completions.create: checking every field takes longer than all else, and servers differ
            completion = parsed(await self.client.post("/chat/completions", cast_to=object, body=body))
            error = error_in(completion)
            if error is None:
                reply = reply_of(completion, asked)
                self._notice(completion.get("model"))
                return reply._replace(text=self.secret.out_of_answer(reply.text))
            status, said = error
        except openai.APIStatusError as failure:
            status, said = failure.status_code, said_in(failure.response.text)
            wait = wait_of(failure.response.headers)
        except openai.APITimeoutError:
            cause = f"no answer in {self.config.timeout:g} s"
            raise Lost(cause, f"lower concurrency or raise timeout ({self.section})", written=True) from None
        except openai.APIConnectionError as failure:
            sent = not isinstance(failure.__cause__, httpx2.ConnectError)
            raise Lost(self._shown(failure), "see whether the server still runs", sent) from None
        except (openai.APIResponseValidationError, TooLargeError, ValueError, RecursionError) as failure:
            advice = f"see what answers there, and lower {self.section}.max_tokens if it is too much"
            raise Lost(self._shown(failure), advice, written=True, final=True) from None
        return self._meant(status, said, wait, asked)

    def _meant(self, status: int, said: Said, wait: float, asked: int) -> Reply:
        """What is made of an error."""
        kind, words = kind_of(status, said), self._status(status, said)
        if kind == "again":
            limit = f"lower concurrency, or set requests_per_minute or tokens_per_minute ({self.section})"
            advice = limit if status == 429 else "the server's log may say why"
            raise Lost(words, advice, sent=status != 429, wait=wait)
        if kind == "refusal":
            if not self.refused:
                print(f"{self.where} refuses a request ({words}): such are counted, and asked again with another seed")
                self.refused = True
            return Reply(words, "content_filter", True, 0, 0)
        if kind == "malformed":
            return Reply("", "other", False, asked, 0)
        marks = {"context": CONTEXT, "form": FORM, "bound": BOUND}
        return Reply(words, marks[kind], False, 0, 0) if kind in marks else self._stop(kind, words)

    def _stop(self, kind: Kind, words: str) -> NoReturn:
        """End the run: what is wrong, in the server's words, and what to do."""
        name, section = self.config.api_key_env, self.section
        key = f"the key in {name}" if name else f"a request without key ({section}.api_key_env)"
        lists = f"; it lists {self._listed()}" if self.models else ""
        sentences = {
            "key": f"{self.where} refuses {key} ({words}).",
            "credit": f"{self.where}: no credit left ({words}); answers until now are kept.",
            "model": f"{self.where} has no model {self.config.model} ({words}): correct {section}.model or "
            f"{self.place}{lists}.",
        }
        never = (
            f"{self.where} does not take the request ({words}): change {section} (model, reply, temperature, "
            "max_tokens, seed, extra)."
        )
        raise SafetyDPOError(sentences.get(kind, never)) from None

    def _notice(self, name: Any) -> None:
        """Say once that another model answers than was asked for: some servers do not look at the name."""
        if isinstance(name, str) and name not in self.answering:
            self.answering.add(name)
            if not same_model(self.config.model, name):
                print(f"{self.where} answers as {self._clean(name)}, not as {self.section}.model, "
                      f"{self.config.model}: see which model it runs")  # fmt: skip

    def _status(self, status: int, said: Said) -> str:
        return f"{status}: {self._clean(said.words)}"

    def _shown(self, error: Exception) -> str:
        """What an error says, in a line."""
        cause = error.__cause__ if isinstance(error, openai.APIConnectionError) else None
        text = str(getattr(error, "message", "") or error)
        return self._clean(f"{text} {cause}" if cause else text)

    def _clean(self, text: str, longest: int = 300) -> str:
        """A text in a line, without the key: cut only after the key is out of it."""
        text = self.secret.out_of(text)[:10_000]
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:longest]
