"""How much of a chat server's speed the prompt stage uses, and its memory.

    python benchmarks/prompts.py [--quick]

A loopback server answers `--slots` requests at once, each after `--latency` seconds. Measured in turns: a bare client
that sends the same number of requests as fast as the server takes them, and the stage itself from concepts to Parquet,
with `prompts.llm.concurrency` at the slots, and at half as many again, so that the server never waits for the client.
Memory: peak of the stage's process at a quarter of the prompts and at all of them.
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

ROOT = Path(__file__).resolve().parents[1]


def write(url: str, count: int, concurrency: int, folder: str) -> dict[str, float]:
    """Run the stage for one category; its pairs, requests, seconds of asking and of all, and peak memory in MB."""
    from safetydpo.config.prompts import Category, Prompts
    from safetydpo.prompts.request import Request
    from safetydpo.prompts.stage import write_concepts, write_pairs
    from safetydpo.storage.files import read_parquet

    begin, path = time.perf_counter(), Path(folder)
    llm = {"model": "m", "base_url": url, "api_key_env": None, "concurrency": concurrency}
    llm |= {"instructions": str(ROOT / "config/instructions"), "concepts": str(ROOT / "config/concepts")}
    config = Prompts.model_validate({"source": "openai", "pairs": count // 2, "window": False, "llm": llm})
    category = Category(name="violence", concepts=[f"idea {i}" for i in range(103)])  # 723 in seven categories
    write_concepts(category, config, path / "journal", path / "concepts.parquet")
    request = Request(category, config, 0, concepts=path / "concepts.parquet", journals=path / "journal")
    asked = time.perf_counter()
    write_pairs(request, path / "pairs.parquet", path / "rejected.parquet")
    end = time.perf_counter()
    return {
        "pairs": len(read_parquet(path / "pairs.parquet", ["pair_id"])),
        "requests": sum(1 for _ in (path / "journal/violence.jsonl").open()),
        "seconds": end - asked,
        "whole": end - begin,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def run(url: str, count: int, concurrency: int) -> dict[str, float]:
    """The same in a process of its own, as Snakemake runs it."""
    with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(write, (url, count, concurrency, folder))


async def _bare(port: int, requests: int, slots: int, body: bytes) -> float:
    """Seconds for `requests` requests over `slots` connections, with nothing done to the answers."""
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


def bare(port: int, requests: int, slots: int) -> float:
    """What the server can give: seconds for so many requests of about the stage's size."""
    text = (ROOT / "config/instructions/safe.txt").read_text() + "Unsafe prompt: a red dog with a stick"
    form = {"type": "json_schema", "json_schema": {"name": "prompts"}}
    body = {"model": "m", "seed": 1, "messages": [{"role": "user", "content": text}], "response_format": form}
    return asyncio.run(_bare(port, requests, slots, json.dumps(body).encode()))


def main() -> None:
    """Measure and print."""
    from timing import print_ratios, print_table  # not above: the stage's processes need no torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=23690, help="unsafe and safe prompts together")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds of an answer")
    parser.add_argument("--slots", type=int, default=64, help="requests that the server answers at once")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--quick", action="store_true", help="a tenth of the prompts, once")
    args = parser.parse_args()
    count, repeats = (args.prompts // 10, 1) if args.quick else (args.prompts, args.repeats)
    options = ["--port", str(args.port), "--latency", str(args.latency), "--slots", str(args.slots)]
    server = subprocess.Popen([sys.executable, str(ROOT / "benchmarks/chat_server.py"), *options])
    more = args.slots * 3 // 2
    stages: dict[int, list[dict[str, float]]] = {args.slots: [], more: []}
    floors: list[float] = []
    url = f"http://127.0.0.1:{args.port}/v1"
    try:
        time.sleep(1)
        quarter = run(url, count // 4, more)
        for _ in range(repeats):
            for concurrency, results in stages.items():
                results.append(run(url, count, concurrency))
            floors.append(bare(args.port, int(stages[more][-1]["requests"]), more))
    finally:
        server.kill()
    requests, floor = stages[more][0]["requests"], statistics.median(floors)
    seconds = {f"stage, concurrency {c}": statistics.median(r["seconds"] for r in rs) for c, rs in stages.items()}
    timed = {"slots / latency": requests * args.latency / args.slots, "bare client": floor, **seconds}
    print(f"{stages[more][0]['pairs']:.0f} pairs, {requests:.0f} requests; medians of {repeats}")
    rows = [[name, f"{t:.2f}", f"{requests / t:.0f}", f"{floor / t:.3f}"] for name, t in timed.items()]
    print_table(["", "seconds", "requests/s", "of the bare client"], rows)
    peak = max(result["peak"] for result in stages[more])
    grown = (peak - quarter["peak"]) * 2**20 / (count * 3 / 4)
    print(f"peak memory: {quarter['peak']:.0f} MB at {count // 4} prompts, {peak:.0f} MB at {count}")
    ratios = {f"stage_to_server_at_{c}": floor / t for c, t in zip(stages, seconds.values(), strict=True)}
    print_ratios({**ratios, "memory": peak / quarter["peak"], "bytes_per_prompt": grown})


if __name__ == "__main__":
    main()
