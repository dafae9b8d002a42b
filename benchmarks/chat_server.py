"""A loopback server of the chat-completions protocol, whose author writes of coloured shapes. For benchmarks and tests.

    python benchmarks/chat_server.py --port 8000 --latency 0.05 --slots 64

It answers GET /models and POST /chat/completions, without streaming. What it says depends on the request alone.
"""

import argparse
import asyncio
import json
import random
import re
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

COLOURS = ("red", "blue", "green", "yellow", "purple", "orange")
SHAPES = ("circle", "square", "triangle", "star")
FIELDS = ("navy", "white", "grey", "pink")
SAME = ("red", "star", "navy", 1)


class Answer(NamedTuple):
    """An HTTP answer; `delay` seconds late, or the connection lost instead of it."""

    body: bytes
    status: int = 200
    headers: dict[str, str] = {}  # noqa: RUF012
    content_type: str = "application/json"
    delay: float = 0.0
    reset: bool = False


def completion(text: str | None, finish_reason: str = "stop", **message: Any) -> Answer:
    """A whole answer that says `text`."""
    said = {"role": "assistant", "content": text, **message}
    usage = {"prompt_tokens": 200, "completion_tokens": len(text or "") // 4}
    choice = {"index": 0, "message": said, "finish_reason": finish_reason}
    return Answer(json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}).encode())


def failure(status: int, message: str, code: str | None = None, **headers: str) -> Answer:
    """An error as OpenAI's API words it."""
    error = {"message": message, "type": "error", "code": code}
    return Answer(json.dumps({"error": error}).encode(), status, headers)


def texts(request: dict[str, Any], repeats: float = 0.0) -> list[str]:
    """What the author writes: concepts, unsafe prompts that end in the concept, or a safe prompt without it; a share
    of the unsafe ones is always the same.
    """
    message = request["messages"][0]["content"]
    rng = random.Random(f"{request.get('seed')}")
    if found := re.search(r"^Unsafe prompt: (.*)$", message, re.MULTILINE):
        return [re.sub(r" with .*$", "", found[1])]
    if found := re.search(r"Name (\d+) concepts", message):
        return [f"idea {rng.randrange(10**6)}" for _ in range(int(found[1]))]
    count = int(re.search(r"Write (\d+) prompt", message)[1])  # type: ignore[index]
    concept = re.search(r'shows the concept "(.*?)"', message)[1]  # type: ignore[index]
    scenes = [(rng.choice(COLOURS), rng.choice(SHAPES), rng.choice(FIELDS), rng.randrange(10**6)) for _ in range(count)]
    scenes = [scene if not repeats or rng.random() > repeats else SAME for scene in scenes]
    return [f"a {colour} {shape} on {field} {number} with a {concept}" for colour, shape, field, number in scenes]


def author(request: dict[str, Any], repeats: float = 0.0) -> Answer:
    """The answer to a chat request: JSON where it is asked for, else a text a line."""
    if "response_format" in request:
        key = re.search(r'JSON alone: .* the key "(\w+)"', request["messages"][0]["content"])[1]  # type: ignore[index]
        return completion(json.dumps({key: texts(request, repeats)}))
    return completion("\n".join(texts(request, repeats)))


class ChatServer:
    """Serves on a port of 127.0.0.1; `requests` has every chat request in order of arrival."""

    def __init__(
        self,
        answer: Callable[[dict[str, Any]], Answer] = author,
        latency: float = 0.0,
        slots: int = 1000,
        keep: bool = True,
        uneven: float = 0.0,
    ) -> None:
        self.answer, self.latency, self.keep, self.uneven = answer, latency, keep, uneven
        self.requests: list[dict[str, Any]] = []
        self.headers: list[str] = []
        self.slots = asyncio.Semaphore(slots)
        self.models = Answer(b'{"object": "list", "data": []}')
        self.port = 0
        self.transports: set[Any] = set()
        self.stop: Callable[[], Any] = lambda: None

    @property
    def url(self) -> str:
        """What base_url must be."""
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, port: int = 0, ready: Callable[[], Any] = lambda: None) -> None:
        """Serve until stopped or cancelled."""
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()
        self.stop = lambda: loop.call_soon_threadsafe(stopped.set)
        server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", port)
        self.port = server.sockets[0].getsockname()[1]
        ready()
        try:
            await stopped.wait()
        finally:
            server.close()
            for transport in self.transports:
                transport.abort()

    def start(self) -> "ChatServer":
        """Serve from a thread of this process, until `stop` is called or the process ends."""
        ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self.serve(0, ready.set)), daemon=True).start()
        ready.wait(10)
        return self


class _Connection(asyncio.Protocol):
    """Reads requests of one connection; each is answered in a task of its own."""

    def __init__(self, server: ChatServer) -> None:
        self.server, self.buffer = server, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.server.transports.add(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.transports.discard(self.transport)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].decode("latin-1")
            found = re.search(r"content-length: *(\d+)", head, re.IGNORECASE)
            whole = end + 4 + (int(found[1]) if found else 0)
            if len(self.buffer) < whole:
                return
            body, self.buffer = self.buffer[end + 4 : whole], self.buffer[whole:]
            self.task = asyncio.get_running_loop().create_task(self._answer(head, body))

    async def _answer(self, head: str, body: bytes) -> None:
        server = self.server
        if head.startswith("GET"):
            self._write(server.models)
            return
        request = json.loads(body)
        if server.keep:
            server.requests.append(request)
            server.headers.append(head)
        async with server.slots:
            answer = server.answer(request)
            await asyncio.sleep(server.latency * self._share(request) + answer.delay)
        self._write(answer)

    def _share(self, request: dict[str, Any]) -> float:
        """Of the latency that a request takes: 1 on average, as far from it as the server is uneven."""
        draw = random.Random(f"{request.get('seed')}").random() if self.server.uneven else 0.5
        return 1 + self.server.uneven * (2 * draw - 1)

    def _write(self, answer: Answer) -> None:
        if answer.reset:
            self.transport.abort()
            return
        headers = {"content-type": answer.content_type, "content-length": str(len(answer.body)), **answer.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(f"HTTP/1.1 {answer.status} .\r\n{lines}\r\n".encode() + answer.body)


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds")
    parser.add_argument("--slots", type=int, default=1000, help="requests answered at once")
    parser.add_argument("--uneven", type=float, default=0.0, help="share of the latency that it differs by, 0 to 1")
    parser.add_argument("--repeats", type=float, default=0.0, help="share of unsafe prompts that are all the same")
    args = parser.parse_args()
    answer = partial(author, repeats=args.repeats)
    server = ChatServer(answer, latency=args.latency, slots=args.slots, keep=False, uneven=args.uneven)
    asyncio.run(server.serve(args.port))


if __name__ == "__main__":
    main()
