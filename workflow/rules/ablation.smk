# Ablations: experts trained with something changed, merged by the first of merge.strategies and tuned, as the run's own. Off
# by default; a study is the target ablation_<study>, the merging strategies are the target ablation_merge.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   features/<category>/<shard>.safetensors     of pairs
#   retain/features.safetensors                 of retain prompts
#   scores/<method>/<benchmark>.parquet         of the variants, base and the run's own merge
# Outputs:
#   ablation/<study>-<variant>/<category>/      an expert: LoRA, training.parquet, README.md
#   ablation/<study>-<variant>/merged/          their merge: LoRA, statistics, README.md
#   ablation/<study>-<variant>/checkpoints/     no outputs, so that a retry finds them
#   tables/ablation-<study>.parquet, .csv, .md

# What a study's table shows: the first benchmark of each kind.
ABLATED = [
    name
    for kind in ("unsafe", "safe", "benign", "over-refusal")
    for name in [b.name for b in CFG.benchmarks if b.kind == kind][:1]
]
STUDIES = {study.name: [f"ablation-{study.name}-{v.name}" for v in study.variants] for study in CFG.ablation}
STUDIES["merge"] = [f"merged-{strategy}" for strategy in CFG.merge.strategies if strategy != CFG.merge.own]
NEEDED = STRATEGIES[CFG.merge.own].statistics
VARIANT = f"{RUN}/ablation/{{variant}}"
VARIANT_EXPERTS = [f"{VARIANT}/{category}/pytorch_lora_weights.safetensors" for category in CATEGORIES]


use rule train_expert as train_variant with:
    output:
        lora=f"{VARIANT}/{{category}}/pytorch_lora_weights.safetensors",
        log=f"{VARIANT}/{{category}}/training.parquet",
        card=f"{VARIANT}/{{category}}/README.md",
    log:
        f"{LOGS}/train_variant/{{variant}}/{{category}}.log",
    benchmark:
        f"{TIMINGS}/train_variant/{{variant}}/{{category}}.tsv"
    params:
        model=MODEL,
        train=lambda wildcards: train_params(CFG.train_of(CFG.variants()[wildcards.variant].train)),
        steps=lambda wildcards: CFG.train_of(CFG.variants()[wildcards.variant].train).steps,
        pairs=lambda wildcards: CFG.variants()[wildcards.variant].pairs,
        checkpoints=f"{VARIANT}/checkpoints/{{category}}",
        seed=CFG.seed,
        version=STAGE_VERSION["train"],
    message:
        "Train expert: {wildcards.category}, {wildcards.variant}"


use rule coactivation as coactivation_variant with:
    input:
        experts=VARIANT_EXPERTS,
        features=[path for category in CATEGORIES for path in features_of(category)],
    output:
        f"{VARIANT}/merged/coactivation.parquet",
    log:
        f"{LOGS}/coactivation_variant/{{variant}}.log",
    benchmark:
        f"{TIMINGS}/coactivation_variant/{{variant}}.tsv"


use rule covariances as covariances_variant with:
    input:
        experts=VARIANT_EXPERTS,
        features=[path for category in CATEGORIES for path in features_of(category)],
        retain=f"{RUN}/retain/features.safetensors" if CFG.merge.fusion.retain_weight else [],
    output:
        f"{VARIANT}/merged/covariances.safetensors",
    log:
        f"{LOGS}/covariances_variant/{{variant}}.log",
    benchmark:
        f"{TIMINGS}/covariances_variant/{{variant}}.tsv"


use rule merge_experts as merge_variant with:
    input:
        experts=VARIANT_EXPERTS,
        statistics=f"{VARIANT}/merged/{NEEDED}" if NEEDED else [],
    output:
        lora=f"{VARIANT}/merged/pytorch_lora_weights.safetensors",
        card=f"{VARIANT}/merged/README.md",
    log:
        f"{LOGS}/merge_variant/{{variant}}.log",
    benchmark:
        f"{TIMINGS}/merge_variant/{{variant}}.tsv"
    message:
        "Merge experts: {wildcards.variant}"


rule ablation_table:
    input:
        scores=lambda wildcards: [f"{RUN}/scores/{method}/{b}.parquet" for method, b in ablation_cells(wildcards.study)],
        judges=f"{RUN}/judges.json",
    output:
        expand(f"{RUN}/tables/ablation-{{{{study}}}}.{{kind}}", kind=["parquet", "csv", "md"]),
    log:
        f"{LOGS}/ablation_table/{{study}}.log",
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
    params:
        cells=lambda wildcards: ablation_cells(wildcards.study),
        verdict=VERDICTS[0],
        bootstrap=CFG.evaluate.bootstrap,
        kinds={b.name: b.kind for b in CFG.benchmarks},
        seed=CFG.seed,
        version=STAGE_VERSION["report"],
    message:
        "Ablation: {wildcards.study}"
    script:
        "../scripts/ablation_table.py"


for study in STUDIES:

    rule:
        name:
            f"ablation_{study.replace('-', '_')}"
        input:
            f"{RUN}/tables/ablation-{study}.md",
