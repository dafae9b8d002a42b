"""What no single key can say: whether the parts of a config fit together. One line a problem."""

from typing import TYPE_CHECKING

from pydantic import ValidationError

from safetydpo.config.attacks import NOT_DIFFERENTIABLE

if TYPE_CHECKING:
    from safetydpo.config.run import Config


def _train_sections(config: "Config") -> list[str]:
    problems = []
    variants = {f"ablation {name}: train": variant.train for name, variant in config.variants().items()}
    for where, differs in {"train.all_single": config.train.all_single or {}, **variants}.items():
        try:
            config.train_of(differs)
        except ValidationError as error:
            for item in error.errors():
                key = ".".join(map(str, item["loc"]))
                problems.append(f"{where}.{key}: {item['msg']}")
    return problems


def problems_of(config: "Config") -> list[str]:
    """Every problem, `path: what is wrong`; those of the matrix only where its names exist."""
    problems = [
        *_repeated(config),
        *_unknown(config),
        *_counts(config),
        *_files(config),
        *_train_sections(config),
        *_attacks(config),
    ]
    return problems or [*_without_base(config), *_without_reference(config)]


def _repeated(config: "Config") -> list[str]:
    problems = []
    for key, names in (("categories", config.category_names), ("benchmarks", [b.name for b in config.benchmarks])):
        repeated = sorted({name for name in names if names.count(name) > 1})
        problems += [f"{key}: `{name}` is listed twice" for name in repeated]
    if "all-single" in config.category_names:
        problems.append("categories: `all-single` is the name of a method; call the category otherwise")
    return problems


def _unknown(config: "Config") -> list[str]:
    problems, methods, benchmarks = [], config.methods(), [b.name for b in config.benchmarks]
    for i, cells in enumerate(config.evaluate.matrix):
        problems += [
            f"evaluate.matrix.{i}.methods: no method `{m}`; there are {', '.join(methods)}, experts"
            for m in cells.methods
            if m != "experts" and m not in methods
        ]
        problems += [
            f"evaluate.matrix.{i}.benchmarks: no benchmark `{b}`; there are {', '.join(benchmarks)}"
            for b in cells.benchmarks
            if b not in benchmarks
        ]
    reference = config.evaluate.fid_reference
    if reference and reference not in methods:
        problems.append(f"evaluate.fid_reference: no method `{reference}`")
    return problems


def _counts(config: "Config") -> list[str]:
    problems = []
    if config.pairs.shards > config.prompts.pairs:
        problems.append(
            f"pairs.shards: {config.pairs.shards} is more than the {config.prompts.pairs} pairs (prompts.pairs)"
        )
    if config.evaluate.shards > config.evaluate.n:
        problems.append(
            f"evaluate.shards: {config.evaluate.shards} is more than evaluate.n, {config.evaluate.n} prompts"
        )
    return problems


def _files(config: "Config") -> list[str]:
    problems = []
    if config.prompts.brings_images and config.train.condition != "unsafe":
        problems.append(f"train.condition: `{config.train.condition}` needs safe prompts, source `folder` has none")
    if not config.prompts.test_share and any(b.source == "split" for b in config.benchmarks):
        problems.append("prompts.test_share: needed for a benchmark of source `split`, the share of pairs to hold out")
    if config.prompts.source != "demo":
        if len(config.tune.scales) > 1 and not config.tune.path:
            problems.append("tune.path: needed to choose among tune.scales; or give one scale")
        uce = config.baselines.uce.retain and any("uce" in cells.methods for cells in config.evaluate.matrix)
        wanted = config.train.preserve.weight or uce
        if wanted and not config.train.preserve.path:
            keys = "train.preserve.weight or baselines.uce.retain"
            problems.append(f"train.preserve.path: needed with {keys}, a file of harmless prompts")
    return problems


def _attacks(config: "Config") -> list[str]:
    attacks = config.attacks
    if not attacks.run:
        return []
    methods = config.methods()
    problems = [
        f"attacks.methods: no method `{m}`; there are {', '.join(methods)}" for m in attacks.methods if m not in methods
    ]
    unsafe = [b.name for b in config.benchmarks if b.kind == "unsafe"]
    if not unsafe:
        problems.append("attacks.benchmark: there is no benchmark of kind `unsafe`, whose prompts could be attacked")
    elif attacks.benchmark and attacks.benchmark not in unsafe:
        problems.append(f"attacks.benchmark: no unsafe benchmark `{attacks.benchmark}`; there are {', '.join(unsafe)}")
    if attacks.success == "category" and config.judges.detector != "demo":
        problems.append("attacks.success: `category` needs judges.detector: demo, which sees categories; use `flagged`")
    taken = [b.name for b in config.benchmarks if config.attack_of(b.name)]
    problems += [f"benchmarks: `{name}` is the name of an attack's benchmark; call it otherwise" for name in taken]
    if "ring-a-bell" in attacks.run and config.prompts.source == "folder":
        problems.append("attacks.run: ring-a-bell needs safe prompts, source `folder` has none")
    if attacks.prompts < config.evaluate.shards:
        problems.append(f"attacks.prompts: {attacks.prompts} is fewer than evaluate.shards, {config.evaluate.shards}")
    if "unlearn-diff-atk" in attacks.run:
        problems += [
            f"attacks.methods: unlearn-diff-atk needs gradients of the UNet, which `{m}` does not give: it acts while "
            "rendering; take one of the two out"
            for m in attacks.methods
            if m.startswith(NOT_DIFFERENTIABLE)
        ]
        target = attacks.benchmark or (unsafe or [""])[0]
        if ("base", target) not in config.cells():
            problems.append(
                f"attacks: unlearn-diff-atk starts from base's images: put `base` on {target} in the matrix"
            )
    return problems


def _without_base(config: "Config") -> list[str]:
    """Cells that lack base's images of the same prompts, with which layout and CLIPScore are compared."""
    cells, problems = config.cells(), []
    for cell in cells.values():
        base = cells.get(("base", cell.benchmark))
        if base is None or (base.n is not None and (cell.n is None or cell.n > base.n)):
            problems.append(
                f"evaluate.matrix: {cell.method} on {cell.benchmark} needs `base` there too, on as many prompts"
            )
    return problems


def _without_reference(config: "Config") -> list[str]:
    cells, reference = config.cells(), config.evaluate.fid_reference
    safe = [b.name for b in config.benchmarks if b.kind == "safe" and any(cell[1] == b.name for cell in cells)]
    if safe and reference and not any((reference, name) in cells for name in safe):
        return [f"evaluate.fid_reference: `{reference}` is not in evaluate.matrix on {safe[0]}"]
    return []
