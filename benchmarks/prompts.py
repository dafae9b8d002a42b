"""How much of a chat server's speed the prompt stage uses, and its memory.

    python benchmarks/prompts.py [--quick]

A loopback server answers so many requests at once, its slots, and the stage asks for as many, from concepts to Parquet,
in a process of its own. Its time is compared with that of a client that does nothing else than post as many requests
and read the answers, one at a time for each slot. Beside both stands the arithmetic bound, requests x mean latency /
slots, which neither reaches: server and timers take time too. Four cases: many concepts; few concepts and uneven
latencies, where waiting for others could leave slots idle; the same with a model that repeats itself in a third of its
prompts; and a server that answers at once, for how many requests a second the stage can make.
"""

import argparse
import asyncio
import multiprocessing
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import aiohttp

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
    Case("many concepts", 4000, 103, 64, 0.25),
    Case("few concepts, uneven", 2000, 3, 8, 0.1, 0.9),
    Case("few concepts, uneven, a third repeated", 2000, 3, 8, 0.1, 0.9, 0.33),
    Case("a server that answers at once", 4000, 103, 64, 0),
)


def write(url: str, case: Case, folder: str) -> dict[str, float]:
    """Run the stage for one category; its pairs, requests, seconds of asking, and peak memory in MB."""
    import safetydpo.prompts.llm  # noqa: F401 - the client's imports are no waiting
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


async def post(url: str, slots: int, requests: int) -> float:
    """Seconds in which a bare client has as many answers."""
    numbers = iter(range(requests))
    message = {"role": "user", "content": 'Write 1 prompt. It shows the concept "idea".' + 800 * "."}

    async def fill_slot() -> None:
        for number in numbers:
            body = {"model": "m", "seed": number, "messages": [message]}
            async with session.post(f"{url}/chat/completions", json=body) as response:
                await response.read()

    async with aiohttp.ClientSession() as session:
        begun = time.perf_counter()
        await asyncio.gather(*[fill_slot() for _ in range(slots)])
        return time.perf_counter() - begun


def run(case: Case, port: int) -> dict[str, float]:
    """The stage against a server of its own, each in a process, as Snakemake runs it; then the bare client."""
    url = f"http://127.0.0.1:{port}/v1"
    options = {name: value for name, value in case._asdict().items() if name not in ("name", "pairs", "concepts")}
    words = [str(word) for name, value in ({"port": port} | options).items() for word in (f"--{name}", value)]
    server = subprocess.Popen([sys.executable, str(ROOT / "benchmarks/chat_server.py"), *words])
    try:
        time.sleep(1)
        with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(write, (url, case, folder))
        found["bare"] = asyncio.run(post(url, case.slots, int(found["requests"])))
    finally:
        server.kill()
    return found | {"limit": found["requests"] * case.latency / case.slots}


def main() -> None:
    """Measure and print."""
    from timing import print_ratios, print_table  # not above: the stage's processes need no torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--quick", action="store_true", help="a tenth of the pairs, once")
    args = parser.parse_args()
    rows, ratios = [], {}
    for case in CASES:
        case = case._replace(pairs=case.pairs // 10) if args.quick else case
        found = [run(case, args.port) for _ in range(1 if args.quick else args.repeats)]
        seconds, bare, limit = (statistics.median(one[key] for one in found) for key in ("seconds", "bare", "limit"))
        pairs, requests = found[0]["pairs"], found[0]["requests"]
        row = [case.name, f"{pairs:.0f}", f"{requests:.0f}", str(case.slots), f"{limit:.2f}", f"{bare:.2f}"]
        row += [f"{seconds:.2f}", f"{bare / seconds:.3f}", f"{requests / seconds:.0f}"]
        rows.append([*row, f"{max(one['peak'] for one in found):.0f}"])
        if limit:
            ratios[case.name.replace(",", "").replace(" ", "_")] = bare / seconds
    heads = [
        "",
        "pairs",
        "requests",
        "slots",
        "bound, s",
        "bare client, s",
        "stage, s",
        "ratio",
        "requests/s",
        "peak MB",
    ]
    print_table(heads, rows)
    print_ratios(ratios)


if __name__ == "__main__":
    main()
