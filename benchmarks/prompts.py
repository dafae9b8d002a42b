"""How much of a chat server's speed the prompt stage uses, and its memory.

    python benchmarks/prompts.py [--quick]

A loopback server answers so many requests at once, its slots, and the stage asks for as many, from concepts to Parquet,
in a process of its own. Measured is its time over what the server needs for as many requests when no slot is ever free
(requests x mean latency / slots): with many concepts; with few concepts and uneven latencies, where waiting for others
could leave slots idle; the same with a model a third of whose prompts repeat others; and, with a server that answers at
once, how many requests a second the stage can make.
"""

import argparse
import multiprocessing
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


def run(case: Case, port: int) -> dict[str, float]:
    """The stage against a server of its own, each in a process, as Snakemake runs it."""
    options = {name: value for name, value in case._asdict().items() if name not in ("name", "pairs", "concepts")}
    words = [str(word) for name, value in ({"port": port} | options).items() for word in (f"--{name}", value)]
    server = subprocess.Popen([sys.executable, str(ROOT / "benchmarks/chat_server.py"), *words])
    try:
        time.sleep(1)
        with tempfile.TemporaryDirectory() as folder, multiprocessing.get_context("spawn").Pool(1) as pool:
            found = pool.apply(write, (f"http://127.0.0.1:{port}/v1", case, folder))
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
        seconds, limit = (statistics.median(one[key] for one in found) for key in ("seconds", "limit"))
        pairs, requests = found[0]["pairs"], found[0]["requests"]
        row = [case.name, f"{pairs:.0f}", f"{requests:.0f}", str(case.slots), f"{limit:.2f}", f"{seconds:.2f}"]
        row += [f"{limit / seconds:.3f}" if limit else "", f"{requests / seconds:.0f}"]
        rows.append([*row, f"{max(one['peak'] for one in found):.0f}"])
        if limit:
            ratios[case.name.replace(",", "").replace(" ", "_")] = limit / seconds
    heads = ["", "pairs", "requests", "slots", "server's limit, s", "stage, s", "of the limit", "requests/s", "peak MB"]
    print_table(heads, rows)
    print_ratios(ratios)


if __name__ == "__main__":
    main()
