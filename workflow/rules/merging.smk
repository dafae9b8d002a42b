# Experts into one LoRA, and the LoRA scale of each method that has one, chosen on tuning prompts.

from safetydpo.merging.registry import STRATEGIES


rule coactivation:
    input:
        experts=expand(f"{RUN}/experts/{{category}}/pytorch_lora_weights.safetensors", category=CATEGORIES),
        features=[path for category in CATEGORIES for path in features_of(category)],
    output:
        f"{RUN}/merged/co-merge/coactivation.parquet",
    log:
        f"{LOGS}/coactivation.log",
    benchmark:
        f"{TIMINGS}/coactivation.tsv"
    group:
        "merge"  # two short jobs, one wait in the queue
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
    params:
        model=MODEL,
        merge=CFG.merge.model_dump(include={"calibration_prompts", "calibration_timesteps"}),
        categories=CATEGORIES,
        seed=CFG.seed,
        version=STAGE_VERSION["merge"],
    message:
        "Co-activation statistics of the experts"
    script:
        "../scripts/coactivation.py"


rule merge_experts:
    input:
        experts=expand(f"{RUN}/experts/{{category}}/pytorch_lora_weights.safetensors", category=CATEGORIES),
        coactivation=lambda wildcards: (
            f"{RUN}/merged/co-merge/coactivation.parquet" if STRATEGIES[wildcards.strategy].coactivation else []
        ),
    output:
        lora=f"{RUN}/merged/{{strategy}}/pytorch_lora_weights.safetensors",
        card=f"{RUN}/merged/{{strategy}}/README.md",
    log:
        f"{LOGS}/merge_experts/{{strategy}}.log",
    benchmark:
        f"{TIMINGS}/merge_experts/{{strategy}}.tsv"
    group:
        "merge"
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
    params:
        model=MODEL,
        merge=CFG.merge.model_dump(include={"rank", "density"}),
        categories=CATEGORIES,
        seed=CFG.seed,
        version=STAGE_VERSION["merge"],
    message:
        "Merge experts: {wildcards.strategy}"
    script:
        "../scripts/merge_experts.py"


rule tune_scale:
    input:
        lora=lambda wildcards: f"{RUN}/{method_of(wildcards.method).weights}",
        prompts=f"{RUN}/tuning/prompts.parquet" if len(CFG.tune.scales) > 1 else [],
        q16=f"{RUN}/q16.safetensors",
    output:
        curve=f"{RUN}/tuning/{{method}}.parquet",
        scale=f"{RUN}/tuning/{{method}}.json",
    log:
        f"{LOGS}/tune_scale/{{method}}.log",
    benchmark:
        f"{TIMINGS}/tune_scale/{{method}}.tsv"
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
        gpu=CFG.resources.gpu,
    params:
        model=MODEL,
        judges=CFG.judges.model_dump(),
        tune=CFG.tune.model_dump(),
        version=STAGE_VERSION["tune"],
    message:
        "LoRA scale on tuning prompts: {wildcards.method}"
    script:
        "../scripts/tune_scale.py"
