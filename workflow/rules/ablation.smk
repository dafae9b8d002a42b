# Ablations: experts trained with something changed, merged by Co-Merge and tuned as the run's own. Off by default; a
# study is the target ablation_<study>, the merging strategies are the target ablation_merge.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   features/<category>/<shard>.safetensors     of pairs
#   retain/features.safetensors                 of retain prompts
#   scores/<method>/<benchmark>.parquet         of the variants, base and Co-Merge
# Outputs:
#   ablation/<study>-<variant>/<category>/      an expert: LoRA, training.parquet, README.md
#   ablation/<study>-<variant>/co-merge/        their merge: LoRA, coactivation.parquet, README.md
#   ablation/<study>-<variant>/checkpoints/     no outputs, so that a retry finds them
#   tables/ablation-<study>.parquet, .csv, .md

# What a study's table shows: the first benchmark of each kind.
ABLATED = [
    name
    for kind in ("unsafe", "safe", "benign", "over-refusal")
    for name in [b.name for b in CFG.benchmarks if b.kind == kind][:1]
]
STUDIES = {study.name: [f"ablation-{study.name}-{v.name}" for v in study.variants] for study in CFG.ablation}
STUDIES["merge"] = [f"merged-{strategy}" for strategy in CFG.merge.strategies if strategy != "co-merge"]


use rule train_expert as train_variant with:
    output:
        lora=f"{RUN}/ablation/{{variant}}/{{category}}/pytorch_lora_weights.safetensors",
        log=f"{RUN}/ablation/{{variant}}/{{category}}/training.parquet",
        card=f"{RUN}/ablation/{{variant}}/{{category}}/README.md",
    log:
        f"{LOGS}/train_variant/{{variant}}/{{category}}.log",
    benchmark:
        f"{TIMINGS}/train_variant/{{variant}}/{{category}}.tsv"
    params:
        model=MODEL,
        train=lambda wildcards: train_params(CFG.train_of(CFG.variants()[wildcards.variant].train)),
        steps=lambda wildcards: CFG.train_of(CFG.variants()[wildcards.variant].train).steps,
        pairs=lambda wildcards: CFG.variants()[wildcards.variant].pairs,
        checkpoints=f"{RUN}/ablation/{{variant}}/checkpoints/{{category}}",
        seed=CFG.seed,
        version=STAGE_VERSION["train"],
    message:
        "Train expert: {wildcards.category}, {wildcards.variant}"


use rule coactivation as coactivation_variant with:
    input:
        experts=[f"{RUN}/ablation/{{variant}}/{category}/pytorch_lora_weights.safetensors" for category in CATEGORIES],
        features=[path for category in CATEGORIES for path in features_of(category)],
    output:
        f"{RUN}/ablation/{{variant}}/co-merge/coactivation.parquet",
    log:
        f"{LOGS}/coactivation_variant/{{variant}}.log",
    benchmark:
        f"{TIMINGS}/coactivation_variant/{{variant}}.tsv"


use rule merge_experts as merge_variant with:
    input:
        experts=[f"{RUN}/ablation/{{variant}}/{category}/pytorch_lora_weights.safetensors" for category in CATEGORIES],
        statistics=f"{RUN}/ablation/{{variant}}/co-merge/coactivation.parquet",
    output:
        lora=f"{RUN}/ablation/{{variant}}/co-merge/pytorch_lora_weights.safetensors",
        card=f"{RUN}/ablation/{{variant}}/co-merge/README.md",
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
