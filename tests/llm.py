"""Writing pairs against a loopback chat server."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from chat_server import Answer, ChatServer, author
from snakes import ROOT

from safetydpo.config.prompts import Category, Prompts
from safetydpo.prompts.request import Request
from safetydpo.prompts.stage import write_concepts, write_pairs
from safetydpo.storage.files import read_parquet

SHIPPED = {"instructions": str(ROOT / "config/instructions"), "concepts": str(ROOT / "config/concepts")}


RUNNING: list[ChatServer] = []  # stopped at the end of the test


def serving(faults: dict[int, Answer] | None = None, answer: Callable[[Any], Answer] = author, **options: Any):
    """A server that answers the n-th chat request (from 0) with faults[n], and the others as `answer` does."""
    faults, count = faults or {}, iter(range(10**9))
    RUNNING.append(ChatServer(lambda request: faults.get(next(count)) or answer(request), **options).start())
    return RUNNING[-1]


def prompts_of(server: ChatServer, *, llm: dict[str, Any] | None = None, **changes: Any) -> Prompts:
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
