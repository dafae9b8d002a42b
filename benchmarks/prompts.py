"""How much of a chat server's speed the prompt stage uses, and its memory.

    python benchmarks/prompts.py [--quick]

A loopback server answers so many requests at once, its slots, and the stage asks for as many, from concepts to Parquet,
in a process of its own. Measured is its time over what the server needs for as many requests when no slot is ever free
(requests x mean latency / slots), in three cases: many concepts and a fast server, where the client's own work could be
too slow; few concepts and uneven latencies, where waiting for others could be; the same with a model a third of whose
prompts repeat others. Of the first, also a bare client that does nothing with the answers.
"""

import argparse
import asyncio
import json
import multiprocessing
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Case(NamedTuple):
    """A server, and what is asked of it. latency: mean seconds; uneven: share that it differs by; repeats: share of
    prompts that the model has written before.
    """

    name: str
    pairs: int
    concepts: int
    slots: int
    latency: float
    uneven: float = 0.0
    repeats: float = 0.0


CASES = (
    Case("many concepts, fast", 11845, 103, 64, 0.05),
    Case("few concepts, uneven", 400, 3, 8, 0.25, 0.9),
    Case("few concepts, uneven, a third repeated", 400, 3, 8, 0.25, 0.9, 0.33),
)


def write(url: str, case: Case, folder: str) -> dict[str, float]:
    """Run the stage for one category; its pairs, requests, seconds of asking, and peak memory in MB."""
    from safetydpo.config.prompts import Category, Prompts
    from safetydpo.prompts.request import Request
    from safetydpo.prompts.stage import write_concepts, write_pairs
    from safetydpo.storage.files import read_parquet

    path = Path(folder)
    llm = {"model": "m", "base_url": url, "api_key_env": None, "concurrency": case.slots}
    llm |= {"instructions": str(ROOT / "config/instructions"), "concepts": str(ROOT / "config/concepts")}
    config = Prompts.model_validate({"source": "openai", "pairs": case.pairs, "window": False, "llm": llm})
    category = Category(name="violence", concepts=[f"idea{i}" for i in range(case.concepts)])
    write_concepts(category, config, path / "journal", path / "concepts.parquet")
    request = Request(category, config, 0, concepts=path / "concepts.parquet", journals=path / "journal")
    asked = time.perf_counter()
    write_pairs(request, path / "pairs.parquet", path / "rejected.parquet")
    return {
        "seconds": time.perf_counter() - asked,
        "pairs": len(read_parquet(path / "pairs.parquet", ["pair_id"])),
        "requests": sum('"key"' in line for line in (path / "journal/violence.jsonl").open()),
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def run(case: Case, port: int) -> dict[str, float]:
    """The stage against a server of its own, each in a process, as Snakemake runs it; and the bare client."""
    options = {
        "port": port,
        "latency": case.latency,
        "slots": case.slots,
        "uneven": case.uneven,
        "repeats": case.repeats,
    }
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    server = subprocess.Popen([sys.executable, str(ROOT / "benchmarks/chat_server.py"), *words])
    try:
        time.sleep(1)
        with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(write, (f"http://127.0.0.1:{port}/v1", case, folder))
        if case.name == CASES[0].name:
            found["bare"] = asyncio.run(_bare(port, int(found["requests"]), case.slots))
    finally:
        server.kill()
    return found | {"limit": found["requests"] * case.latency / case.slots}


async def _bare(port: int, requests: int, slots: int) -> float:
    """Seconds for `requests` requests of about the stage's size over `slots` connections."""
    text = (ROOT / "config/instructions/safe.txt").read_text() + "Unsafe prompt: a red dog with a stick"
    form = {"type": "json_schema", "json_schema": {"name": "prompts"}}
    values = {"model": "m", "seed": 1, "messages": [{"role": "user", "content": text}], "response_format": form}
    body = json.dumps(values).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    left = iter(range(requests))

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in left:
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.search(rb"content-length: (\d+)", answer)[1]))  # type: ignore[index]
        writer.close()

    begin = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(slots)))
    return time.perf_counter() - begin


def main() -> None:
    """Measure and print."""
    from timing import print_ratios, print_table  # not above: the stage's processes need no torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--quick", action="store_true", help="a tenth of the pairs, once")
    args = parser.parse_args()
    small = {case.name: case._replace(pairs=case.pairs // 10) for case in CASES}
    rows, ratios = [], {}
    for case in CASES:
        case = small[case.name] if args.quick else case
        found = [run(case, args.port) for _ in range(1 if args.quick else args.repeats)]
        seconds, limit = (statistics.median(one[key] for one in found) for key in ("seconds", "limit"))
        pairs, requests = found[0]["pairs"], found[0]["requests"]
        row = [case.name, f"{pairs:.0f}", f"{requests:.0f}", case.slots, f"{limit:.2f}", f"{seconds:.2f}"]
        rows.append([*row, f"{limit / seconds:.3f}", f"{max(one['peak'] for one in found):.0f}"])
        ratios[case.name.replace(",", "").replace(" ", "_")] = limit / seconds
        if "bare" in found[0]:
            ratios["stage_to_bare_client"] = statistics.median(one["bare"] for one in found) / seconds
    heads = ["", "pairs", "requests", "slots", "server's limit, s", "stage, s", "of the limit", "peak MB"]
    print_table(heads, rows)
    print_ratios(ratios)


if __name__ == "__main__":
    main()
