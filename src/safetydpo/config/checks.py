"""What no single key can say: whether the parts of a config fit together. One line a problem, `path: what is wrong`.

A check takes the config without knowing its class, since `run` calls them all. `loading` hands on what is sound of a
config that has wrong values too, so that their errors and these come together: see `problems_of`.
"""

import csv
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from safetydpo.attacks.registry import ATTACKS
from safetydpo.config.attacks import hardening_problems
from safetydpo.config.evaluation import ALL
from safetydpo.methods.registry import ERASERS, GUIDED, method_of
from safetydpo.models.families.registry import kind_of, refusals, unknown
from safetydpo.prompts.registry import SOURCES


def problems_of(config: Any, partial: bool = False) -> list[str]:
    """Every problem of a config.

    partial: some parts are missing; what a check finds before it needs one of them still counts.
    """
    problems: list[str] = []
    for check in CHECKS:
        try:
            problems.extend(check(config))
        except AttributeError:
            if not partial:
                raise
    if problems or partial:
        return problems
    return [problem for check in CHECKS_OF_THE_MATRIX for problem in check(config)]


# Lists in which nothing may stand twice: the last would replace the others' settings in silence.
LISTS: dict[str, Callable[[Any], Iterable[Any]]] = {
    "categories": lambda config: (c.name for c in config.categories),
    "benchmarks": lambda config: (b.name for b in config.benchmarks),
    "judges.panel": lambda config: (judge.name or judge.judge for judge in config.judges.panel),
    "judges.verdicts": lambda config: (verdict.name for verdict in config.judges.verdicts),
    "baselines.externals": lambda config: (e.name for e in config.baselines.externals),
    "ablation": lambda config: (s.name for s in config.ablation),
    "ablation, variants": lambda config: (f"{s.name}-{v.name}" for s in config.ablation for v in s.variants),
    "merge.strategies": lambda config: config.merge.strategies,
    "tune.scales": lambda config: config.tune.scales,
    "attacks.run": lambda config: config.attacks.run,
    "attacks.methods": lambda config: config.attacks.methods,
    "harden.attacks": lambda config: config.harden.attacks,
}


def _repeated(key: str, config: Any) -> Iterator[str]:
    for name, count in Counter(LISTS[key](config)).items():
        if count > 1:
            yield f"{key}: `{name}` is listed twice"


def _category_names(config: Any) -> Iterator[str]:
    for name in config.category_names:
        if name in ("all-single", "merged", *ERASERS):  # whose files lie where those of a category do
            yield f"categories: `{name}` is the name of a method; call the category otherwise"
        if name == "all":
            yield "categories: `all` stands for all of them together in every table; call the category otherwise"


def _study_names(config: Any) -> Iterator[str]:
    for study in config.ablation:
        if study.name in ("merge", "table"):
            yield f"ablation: ablation_{study.name} is a rule of its own; call the study `{study.name}` otherwise"


def _unknown_methods(config: Any) -> Iterator[str]:
    methods = config.methods()
    for i, cells in enumerate(config.evaluate.matrix):
        for name in cells.methods:
            if name != "experts" and name not in methods:
                yield f"evaluate.matrix.{i}.methods: no method `{name}`; there are {', '.join(methods)}, experts"


def _unknown_benchmarks(config: Any) -> Iterator[str]:
    benchmarks = [b.name for b in config.benchmarks]
    for i, cells in enumerate(config.evaluate.matrix):
        for name in cells.benchmarks if cells.benchmarks != [ALL] else ():
            if name not in benchmarks:
                yield f"evaluate.matrix.{i}.benchmarks: no benchmark `{name}`; there are {', '.join(benchmarks)}"


def _unknown_reference(config: Any) -> Iterator[str]:
    path = config.fid_reference_path
    if path and "/" not in path and not path.endswith(".npz") and not Path(path).exists():
        yield f"evaluate.fid_reference: no method `{path}`; and no folder or .npz is called so"


def _all_of_the_demo(config: Any) -> Iterator[str]:
    for benchmark in config.benchmarks:
        if benchmark.source == "demo" and (benchmark.limit or config.evaluate.n) is None:
            yield f"evaluate.n: null is all of a file; benchmark `{benchmark.name}` of source `demo` needs a limit"


def _pair_shards(config: Any) -> Iterator[str]:
    if config.pairs.shards > config.prompts.pairs:
        yield f"pairs.shards: {config.pairs.shards} is more than the {config.prompts.pairs} pairs (prompts.pairs)"


def _safe_prompts(config: Any) -> Iterator[str]:
    if config.prompts.brings_images and config.train.condition != "unsafe":
        source = config.prompts.source
        yield f"train.condition: `{config.train.condition}` needs safe prompts, source `{source}` has none"


def _without_categories(config: Any) -> Iterator[str]:
    """What is made of prompt pairs, or of prompts of the run's categories, where there are none."""
    if config.categories:
        return
    none, attacks = "and `categories` is empty: name some, or take it out", config.attacks
    methods = {f"evaluate.matrix.{i}.methods": cells.methods for i, cells in enumerate(config.evaluate.matrix)}
    methods |= {"attacks.methods": attacks.methods if attacks.run else []}
    known = {"experts", *config.methods()}
    for where, names in methods.items():
        for name in names:
            if name in known and (name == "experts" or method_of(name).kind.trained):
                yield f"{where}: `{name}` is trained on prompt pairs of the categories, {none}"
    for name in attacks.run:
        if ATTACKS[name].pairs:
            yield f"attacks.run: `{name}` needs prompt pairs of the categories, {none}"
    for b in config.benchmarks:
        if b.source == "split" or b.asks_demo_for_categories:
            yield f"benchmarks: `{b.name}`, of source `{b.source}`, needs the categories, {none}"
    for study in config.ablation:
        yield f"ablation: `{study.name}` is trained on prompt pairs of the categories, {none}"


def _held_out(config: Any) -> Iterator[str]:
    if not config.prompts.test_share and any(b.source == "split" for b in config.benchmarks):
        yield "prompts.test_share: needed for a benchmark of source `split`, the share of pairs to hold out"


def _train_sections(config: Any) -> Iterator[str]:
    own = config.train.preserve
    for where, differs in config.other_trainings().items():
        try:
            asked = config.train_of(differs).preserve
            if (asked.path, asked.prompts) != (own.path, own.prompts):
                yield f"{where}.preserve: `path` and `prompts` are those of train.preserve, for all trainings of a run"
        except ValidationError as error:
            for item in error.errors():
                if item["loc"] and item["loc"][0] in differs:  # or it is an error of `train` itself
                    yield f"{where}.{'.'.join(map(str, item['loc']))}: {item['msg']}"


def _rendered_noise(config: Any) -> Iterator[str]:
    if not config.prompts.brings_images:
        return
    for where, keys in {"train": vars(config.train), **config.other_trainings()}.items():
        if keys.get("noise") == "rendered":
            source = config.prompts.source
            yield f"{where}.noise: source `{source}` brings its images, whose noise nobody knows; write `fresh`"


def _attacked_methods(config: Any) -> Iterator[str]:
    methods = config.methods()
    for name in config.attacks.methods if config.attacks.run else []:
        if name not in methods:
            yield f"attacks.methods: no method `{name}`; there are {', '.join(methods)}"


def _attacked_benchmark(config: Any) -> Iterator[str]:
    if not config.attacks.run:
        return
    unsafe, wanted = [b.name for b in config.benchmarks if b.kind == "unsafe"], config.attacks.benchmark
    if not unsafe:
        yield "attacks.benchmark: there is no benchmark of kind `unsafe`, whose prompts could be attacked"
    elif wanted and wanted not in unsafe:
        yield f"attacks.benchmark: no unsafe benchmark `{wanted}`; there are {', '.join(unsafe)}"


def _attack_success(config: Any) -> Iterator[str]:
    attacks = config.attacks
    if attacks.run and attacks.success == "category" and not config.judges.sees_categories:
        yield "attacks.success: `category` needs the demo judge, which sees categories; use `flagged`"


def _benchmark_names(config: Any) -> Iterator[str]:
    for name in [b.name for b in config.benchmarks]:
        if config.attack_of(name):
            yield f"benchmarks: `{name}` is the name of an attack's benchmark; call it otherwise"
        if name == ALL:
            yield f"benchmarks: `{ALL}` stands for each of them in evaluate.matrix; call it otherwise"


def _attack_pairs(config: Any) -> Iterator[str]:
    for name in config.attacks.run:
        if ATTACKS[name].pairs and config.prompts.brings_images:
            yield f"attacks.run: {name} needs safe prompts, source `{config.prompts.source}` has none"


def _attack_shards(config: Any) -> Iterator[str]:
    if config.attacks.run and config.attacks.prompts < config.evaluate.shards:
        yield f"attacks.prompts: {config.attacks.prompts} is fewer than evaluate.shards, {config.evaluate.shards}"


def _attack_gradients(config: Any) -> Iterator[str]:
    known = config.methods()
    for attack in [name for name in config.attacks.run if ATTACKS[name].gradients]:
        for method in config.attacks.methods:
            if method in known and not method_of(method).kind.gradients:
                yield (
                    f"attacks.methods: {attack} needs gradients of the UNet, which `{method}` does not give: it acts "
                    "while rendering; take one of the two out"
                )


def _attack_settings(config: Any) -> Iterator[str]:
    target = config.attacked_benchmark if config.attacks.run else None
    if any(b.name == target and b.row_settings for b in config.benchmarks):
        yield (
            f"attacks.benchmark: `{target}` has row_settings, and attacks render as section `model` says: attack a "
            "benchmark of the same file without them"
        )


def _attack_images(config: Any) -> Iterator[str]:
    unsafe = [b.name for b in config.benchmarks if b.kind == "unsafe"]
    target = config.attacks.benchmark or (unsafe or [""])[0]
    for name in config.attacks.run:
        if ATTACKS[name].images and ("base", target) not in config.cells():
            yield f"attacks: {name} starts from base's images: put `base` on {target} in the matrix"


CHECKS: tuple[Callable[[Any], Iterator[str]], ...] = (
    *(partial(_repeated, key) for key in LISTS),
    _category_names,
    _study_names,
    _unknown_methods,
    _unknown_benchmarks,
    _unknown_reference,
    _all_of_the_demo,
    _pair_shards,
    _safe_prompts,
    _held_out,
    _train_sections,
    _rendered_noise,
    _attacked_methods,
    _attacked_benchmark,
    _attack_success,
    _benchmark_names,
    _without_categories,
    _attack_pairs,
    _attack_shards,
    _attack_gradients,
    _attack_settings,
    _attack_images,
    hardening_problems,
)


def _guided_methods(config: Any) -> Iterator[str]:
    for what, name in config.asked().items() if config.model.guidance_scale <= 1 else ():
        if name in GUIDED:
            yield f"{what} changes classifier-free guidance, which is off: raise model.guidance_scale, or take it out"


def _without_base(config: Any) -> Iterator[str]:
    """Cells that lack base's images of the same prompts, with which layout and CLIPScore are compared."""
    cells = config.cells()
    for cell in cells.values():
        base = cells.get(("base", cell.benchmark))
        if base is None or (base.n is not None and (cell.n is None or cell.n > base.n)):
            yield f"evaluate.matrix: {cell.method} on {cell.benchmark} needs `base` there too, on as many prompts"


def _without_reference(config: Any) -> Iterator[str]:
    cells, reference = config.cells(), config.evaluate.fid_reference
    if config.fid_reference_path:
        return
    safe = [b.name for b in config.benchmarks if b.kind == "safe" and any(cell[1] == b.name for cell in cells)]
    if safe and reference and not any((reference, name) in cells for name in safe):
        yield f"evaluate.fid_reference: `{reference}` is not in evaluate.matrix on {safe[0]}"


def _mentioned_otherwise(config: Any) -> Iterator[str]:
    """Cells that the matrix mentions again, with other prompts."""
    first: dict[tuple[str, str], Any] = {}
    for cell in config.mentioned_cells():
        if first.setdefault((cell.method, cell.benchmark), cell) != cell:
            yield f"evaluate.matrix: {cell.method} on {cell.benchmark} is there twice, with other prompts"


def _own_categories(config: Any) -> Iterator[str]:
    own = dict.fromkeys(cell.benchmark for cell in config.cells().values() if cell.category is not None)
    for benchmark in map(config.benchmark, own):
        if benchmark.source == "demo" and benchmark.kind != "unsafe":
            yield f"evaluate.matrix: own_category: `{benchmark.name}` has no prompts of the run's categories"


def _image_shards(config: Any) -> Iterator[str]:
    attacked = [config.cell("base", config.attacked_benchmark)] if config.attack_names else []
    few = (_fewer_than_shards(config, cell) for cell in (*config.cells().values(), *attacked))
    for what in dict.fromkeys(filter(None, few)):
        yield f"evaluate.shards: {config.evaluate.shards} is more than {what}"


def _fewer_than_shards(config: Any, cell: Any) -> str | None:
    """What has too few prompts for the shards of a cell, as far as a config alone tells."""
    benchmark, shards = config.benchmark(cell.benchmark), config.evaluate.shards
    n, wanted = benchmark.limit or config.evaluate.n, -(-shards // benchmark.images)
    if n is not None and n < wanted:
        return f"{f'the limit of benchmark `{benchmark.name}`' if benchmark.limit else 'evaluate.n'}, {n} prompts"
    if n is not None and cell.category and benchmark.asks_demo_for_categories:
        share, more = divmod(n, len(config.categories))  # `more` of the categories have a prompt more
        own = sum(c.benchmark == benchmark.name and c.category is not None for c in config.cells().values())
        share += own <= more
        if share < wanted:
            return f"the prompts of a category of benchmark `{benchmark.name}`, {share} of {n}"
    return f"the {cell.n} prompts of {cell.method} on {benchmark.name}" if cell.n and cell.n < shards else None


# Of a matrix whose names exist.
CHECKS_OF_THE_MATRIX = (
    _guided_methods,
    _without_base,
    _without_reference,
    _mentioned_otherwise,
    _own_categories,
    _image_shards,
)


def lacks_tuning_prompts(config: Any) -> str:
    """What the rule of tuning prompts lacks, which a run that ends before it need not have; "" nothing."""
    if config.prompts.own_sets or config.tune.path:
        return ""
    return "tune.path: needed to choose among tune.scales, a file of tuning prompts; or give one scale"


def lacks_retain_prompts(config: Any) -> str:
    """The same of the preservation term's harmless prompts."""
    if config.prompts.own_sets or config.train.preserve.path:
        return ""
    users = "train.preserve.weight, baselines.uce.retain or the strategy fusion"
    return f"train.preserve.path: needed with {users}, a file of harmless prompts"


def problems_of_files(config: Any) -> Iterator[str]:
    """What users' files show before a job reads them: a model whose family cannot do what is asked of it, fewer rows
    than shards, no images to measure FID to.
    """
    yield from _of_the_family(config)
    reference = config.fid_reference_path
    if reference and not (Path(reference).is_dir() or (reference.endswith(".npz") and Path(reference).is_file())):
        yield f"evaluate.fid_reference: {reference} is neither a method nor a folder of images or a .npz that is there"
    shards, prompts = config.pairs.shards, config.prompts
    if shards > 1 and SOURCES[prompts.source].needs_path and not _has_rows(prompts.path, shards):
        yield f"pairs.shards: {shards} is more than the rows of {prompts.path}"
    for benchmark in [config.benchmark(name) for name in dict.fromkeys(name for _, name in config.cells())]:
        wanted = -(-config.evaluate.shards // benchmark.images)
        if wanted > 1 and benchmark.source == "file" and not _has_rows(benchmark.path, wanted):
            yield f"evaluate.shards: {config.evaluate.shards} is more than the prompts of {benchmark.path}"


def _of_the_family(config: Any) -> Iterator[str]:
    """Of a model that is not here yet, `check_model` says the same."""
    if index := config.model.index():
        kind, name = kind_of(index), config.model.id
        yield from refusals(kind, config.asked(), name) if kind else [f"model.id: {unknown(index, name)}"]


def _has_rows(path: Path | str, count: int) -> bool:
    """Whether a csv or Parquet may have as many rows; True where that is not known, which its reader says better, and
    of JSON, whose rows are no lines.
    """
    if Path(path).suffix.lower() in (".json", ".jsonl", ".ndjson"):
        return True
    try:
        with open(path, "rb") as file:
            begins = file.read(64)
        if begins.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{"):
            return True
        if begins.startswith(b"PAR1"):
            from pyarrow.parquet import read_metadata  # a plan needs it for this alone

            return read_metadata(path).num_rows >= count
        with open(path, encoding="latin-1", newline="") as file:  # which reads every byte
            return any(islice(filter(None, csv.reader(file)), count, None))  # beside the header
    except (OSError, ValueError, csv.Error):
        return True
