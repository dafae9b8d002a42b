# The checked config as CFG, paths, wildcard constraints, and what a method needs. No rule here.
import hashlib
import os
import sys

from safetydpo.config.checks import lacks_retain_prompts, lacks_tuning_prompts
from safetydpo.config.loading import planned_config
from safetydpo.config.versions import MACHINE_KEYS, STAGE_VERSION
from safetydpo.errors import SafetyDPOError
from safetydpo.export.registry import FORMATS, asked_for, refuse_family
from safetydpo.methods.registry import ERASERS, method_of
from safetydpo.models.families.registry import kind_of

try:
    CFG = planned_config(config, workflow.configfiles)
except SafetyDPOError as error:
    sys.exit(str(error))

RUN = CFG.folder
LOGS = f"logs/{CFG.run}"
TIMINGS = f"{RUN}/timings"
CATEGORIES = CFG.category_names
# What of the model changes images; batch size and device do not.
MODEL = CFG.model.model_dump(exclude=MACHINE_KEYS["model"])
PROMPTS = CFG.prompts.model_dump(exclude=MACHINE_KEYS["prompts"])
# Who looks at images, without the verdicts; who of them tuning and attacks need, with the verdict that they go by.
ACTS = CFG.judges.to_act()
LOOKS = CFG.judges.looks().model_dump(exclude=MACHINE_KEYS["judges"])
ACTING = ACTS.model_dump(exclude=MACHINE_KEYS["judges"])
ANSWERS = f"{RUN}/answers"
PAIRS = [f"{RUN}/prompts/{category}.parquet" for category in CATEGORIES]
INSTRUCTIONS = [f"{CFG.prompts.llm.instructions}/{name}.txt" for name in CFG.prompts.instructions]
CONCEPTS = [f"{CFG.prompts.llm.concepts}/{category}.yaml" for category in CATEGORIES] if CFG.prompts.written else []
PRESERVE = CFG.train.preserve.weight > 0
# For `--sdm conda`; the environment file finds the package and its pins through the variable.
REPOSITORY = os.path.abspath(f"{workflow.current_basedir}/../..")
CONDA = f"{REPOSITORY}/envs/{'gpu' if CFG.resources.gpu else 'cpu'}.yaml"
os.environ.update(SAFETYDPO_ROOT=REPOSITORY)


wildcard_constraints:
    category="|".join(CATEGORIES) or "none",
    expert="|".join([*CATEGORIES, "all-single"]),
    strategy="|".join(CFG.merge.strategies),
    method="|".join(CFG.methods()),
    benchmark="|".join(CFG.kinds()),
    attack="|".join(CFG.attack_names) or "none",
    eraser="|".join(ERASERS),
    external="|".join(external.name for external in CFG.baselines.externals) or "none",
    variant="|".join(CFG.variants()) or "none",
    study="|".join([*(study.name for study in CFG.ablation), "merge"]),
    judge="|".join(CFG.judges.copied) or "none",
    shard=r"\d+",
    round=r"[1-9]\d*",


def memory(wildcards, attempt):
    """Memory of a job, more with each retry."""
    return CFG.resources.mem_mb * attempt


def judges_files(judges):
    """Inputs of a job that looks at images: copies of pickles, and users' files. The check of all judges is none, or
    every other judge's reasons to be checked again would be this job's.
    """
    copies = [f"{RUN}/judges/{name}.safetensors" for name in judges.copied]
    return {"copies": copies, "files": present(*inside(judges.user_files))}


def inside(paths):
    """The files in users' folders, of which a folder's own time does not tell that one was changed."""
    parts = [sorted(entry.path for entry in os.scandir(p)) if os.path.isdir(p) else [p] for p in paths]
    return [path for part in parts for path in part if os.path.isfile(path)]


def features_of(category):
    """Features files of a category."""
    return [f"{RUN}/features/{category}/{shard}.safetensors" for shard in range(CFG.pairs.shards)]


def features_until(category, rounds):
    """The same with what adversarial rounds added, the first `rounds` of them."""
    return features_of(category) + [f"{RUN}/harden/{i}/features/{category}.safetensors" for i in range(1, rounds + 1)]


def images_of(method, benchmark):
    """Image shards of a cell of the matrix."""
    return [f"{RUN}/images/{method}/{benchmark}/{shard}.parquet" for shard in range(CFG.evaluate.shards)]


def prompts_of(wildcards):
    """The prompts of a benchmark; those of an attack were found against the method."""
    attack = CFG.attack_of(wildcards.benchmark)
    if attack:
        return f"{RUN}/attacks/{attack}/{wildcards.method}.parquet"
    return f"{RUN}/benchmarks/{wildcards.benchmark}.parquet"


def method_inputs(wildcards):
    """The file that a method renders with and, where it is tuned, the scale of its LoRA; the check of an external."""
    method = method_of(wildcards.method)
    inputs = {}
    if method.weights:
        inputs["weights"] = f"{RUN}/{method.weights}"
    if method.kind.tuned:
        inputs["scale"] = f"{RUN}/tuning/{wildcards.method}.json"
    if method.kind.of == "name":
        inputs["external"] = f"{RUN}/externals/{method.variant}.json"  # that it can be opened
    return inputs


def hardening_method(wildcards):
    """What an adversarial round attacks."""
    return "base" if int(wildcards.round) == 1 else f"merged-{CFG.hardens_by}"


def hardening_inputs(wildcards):
    """What it renders with."""
    if int(wildcards.round) == 1:
        return {}
    before, merge = f"{RUN}/harden/{int(wildcards.round) - 1}", CFG.hardens_by
    lora, scale = f"merged/{merge}/pytorch_lora_weights.safetensors", f"tuning/merged-{merge}.json"
    return {"weights": f"{before}/{lora}", "scale": f"{before}/{scale}"}


def export_inputs(wildcards):
    """What an export is made of; one sentence, before the first job, where it cannot be had."""
    try:
        _, form = asked_for(wildcards.method, wildcards.format, export_rank(wildcards))
        if kind := kind_of(CFG.model.index() or {}):
            refuse_family(form, kind, CFG.model.id)
    except SafetyDPOError as error:
        sys.exit(str(error))
    return method_inputs(wildcards) | {"metrics": present(f"{RUN}/metrics.parquet")}


def export_rank(wildcards):
    """The rank at which an export is cut off, of the formats that are LoRAs."""
    return CFG.export.rank if FORMATS[wildcards.format].adapter else None


def train_params(train):
    """What of a train section changes the LoRA; the steps are a parameter of their own."""
    return train.model_dump(exclude=MACHINE_KEYS["train"] | {"all_single"})


def digest(path):
    """A hash of a file that people edit; of nothing where it is missing, which is the job's own clear error."""
    return hashlib.sha256(open(path, "rb").read() if os.path.exists(path) else b"").hexdigest()[:16]


def asked_of(method):
    """What of the baselines section changes how a method renders: nothing for most."""
    return CFG.baselines.model_dump(include=set(method_of(method).kind.settings))


def ablation_cells(study):
    """Cells of a study's table: base, the run's own merge, and the variants, on the first benchmark of each kind."""
    methods = ["base", f"merged-{CFG.merge.own}", *STUDIES[study]]
    return [(method, benchmark) for method in methods for benchmark in ABLATED]


def present(*paths):
    """Users' files as inputs, so that a change of one reruns; a missing one is the job's own clear error."""
    return [path for path in paths if path and "{" not in path and os.path.exists(path)]


def changed(*paths):
    """When files were changed whose braces Snakemake reads as wildcards: a parameter, since they can be no inputs."""
    braced = [path for path in paths if path and "{" in path]
    return {"changed": [os.stat(p).st_mtime_ns if os.path.exists(p) else None for p in braced]} if braced else {}


def complete(problem):
    """No input, but the sentence on what a rule lacks, before the first job; a run that ends at earlier rules (`--until`)
    need not have it, and the job says it otherwise.
    """

    def inputs(wildcards):
        if problem and not workflow.dag_settings.until:
            sys.exit(f"Config errors:\n  {problem}")
        return []

    return inputs
