"""Writing pairs, and judging images, against a loopback chat server."""

import asyncio
import base64
import contextlib
import io
import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from chat_server import Answer, ChatServer, author, completion
from PIL import Image
from snakes import ROOT

from safetydpo.config.prompts import Category, Prompts
from safetydpo.config.server import ChatServer as Config
from safetydpo.llm.journal import Journal
from safetydpo.llm.question import Question, list_of
from safetydpo.llm.server import Server
from safetydpo.prompts.request import Request
from safetydpo.prompts.stage import write_concepts, write_pairs
from safetydpo.storage.files import read_parquet

SHIPPED = {"instructions": str(ROOT / "config/instructions"), "concepts": str(ROOT / "config/concepts")}


RUNNING: list[Any] = []  # servers, stopped at the end of the test


def serving(faults: dict[int, Answer] | None = None, answer: Callable[[Any], Answer] = author, **options: Any):
    """A server that answers the n-th chat request (from 0) with faults[n], and the others as `answer` does."""
    faults, count = faults or {}, iter(range(10**9))
    RUNNING.append(ChatServer(lambda request: faults.get(next(count)) or answer(request), **options).start())
    return RUNNING[-1]


def shown(request: dict[str, Any]) -> np.ndarray:
    """The pixels of a request's image, uint8 (h, w, 3)."""
    _, part = request["messages"][0]["content"]
    start = "data:image/png;base64,"
    assert (part["type"], part["image_url"]["url"][: len(start)]) == ("image_url", start)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"][len(start) :]))))


def critic(request: dict[str, Any]) -> Answer:
    """A judge to whom images that are more red than blue are violence: JSON where it is asked for, else a line."""
    red, _, blue = shown(request).mean((0, 1))
    if "response_format" in request:
        said = {"unsafe": bool(red > blue), "category": "violence" if red > blue else "none"}
        return completion(json.dumps(said))
    return completion("unsafe: violence" if red > blue else "safe")


class RawServer(ThreadingHTTPServer):
    """Answers a chat request by what `answer(write)` writes to the wire, for as long as the client listens."""

    daemon_threads = True

    def __init__(self, answer: Callable[[Callable[[bytes], Any]], Any]) -> None:
        self.asked, outer = 0, self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.wfile.write(b"HTTP/1.1 200 .\r\ncontent-length: 2\r\n\r\n{}")

            def do_POST(self) -> None:
                outer.asked += 1
                self.rfile.read(int(self.headers["content-length"]))
                with contextlib.suppress(OSError):
                    answer(self.wfile.write)

            def log_message(self, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        RUNNING.append(self)

    def stop(self) -> None:
        """End."""
        self.shutdown()
        self.server_close()


def lines(request: dict[str, Any]) -> Answer:
    """Two texts: as JSON where it is asked for, else a line each."""
    dogs = [f"a {colour} dog {request.get('seed')}" for colour in ("red", "blue")]
    return completion(json.dumps({"prompts": dogs}) if "response_format" in request else "\n".join(dogs))


def told(server: Any, folder: Path, *names: str, at_once: int = 1, form: Any = None, **llm: Any):
    """What a server says to questions of these names, `at_once` in flight, each with the fault where that is nothing.

    The journal is folder/a.jsonl.
    """
    own = {"model": "m", "base_url": server.url, "api_key_env": None, "concurrency": at_once, **llm}
    journal = Journal(folder / "a.jsonl")
    journal.renew()
    form = form or list_of("prompts", 2)
    questions = [Question(lambda plain: "A line each." if plain else "JSON alone.", form, name) for name in names]

    async def ask() -> list[Any]:
        asker, answers = Server(Config(**own), "prompts.llm", journal), []
        try:
            for start in range(0, len(questions), at_once):
                part = [asker.ask(question) for question in questions[start : start + at_once]]
                answers += await asyncio.gather(*part)
        finally:
            await asker.close()
        return answers

    try:
        return asyncio.run(ask())
    finally:
        journal.close()


def prompts_of(server: Any, *, llm: dict[str, Any] | None = None, **changes: Any) -> Prompts:
    """The prompts section for a server; one request at a time, so that the n-th request is the same in every run."""
    own = {"model": "m", "base_url": server.url, "api_key_env": None, "concurrency": 1, **SHIPPED, **(llm or {})}
    return Prompts(**{"source": "openai", "pairs": 4, "window": False, "llm": own, **changes})


def write(
    folder: Path, config: Prompts, name: str = "violence", concepts: tuple[str, ...] = ("fighting", "war"), **more: Any
):
    """Pairs, rejected rows and the summary."""
    category = Category(name="violence", concepts=list(concepts))
    write_concepts(category, config, folder / "journal", folder / "concepts.parquet")
    request = Request(category, config, 0, concepts=folder / "concepts.parquet", journals=folder / "journal", **more)
    said = write_pairs(request, folder / "pairs.parquet", folder / "rejected.parquet")
    return read_parquet(folder / "pairs.parquet"), read_parquet(folder / "rejected.parquet"), said
