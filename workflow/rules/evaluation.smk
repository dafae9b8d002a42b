# The LoRA scale of each method that has one, chosen on tuning prompts; judges on every cell of the matrix; all metrics.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   tuning/prompts.parquet                                             prompts neither trained on nor reported
#   experts/all-single/, merged/<strategy>/, ablation/<variant>/       LoRAs whose scale is tuned
#   images/<method>/<benchmark>/<shard>.parquet                        images of a cell, and base's of the same prompts
#   benchmarks/<benchmark>.parquet, attacks/<attack>/<method>.parquet  their prompts
#   q16.safetensors                                                    the judges can be loaded
# Outputs:
#   tuning/<method>.parquet, .json                                     curve over the LoRA scale, and the scale chosen
#   scores/<method>/<benchmark>.parquet                                per image
#   metrics.parquet                                                    the long table of all metrics


MEASURED = [*CFG.cells(), *CFG.attack_cells()]


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


rule score:
    input:
        images=lambda wildcards: images_of(wildcards.method, wildcards.benchmark),
        base=lambda wildcards: (
            images_of("base", wildcards.benchmark) if CFG.beside_base(wildcards.method, wildcards.benchmark) else []
        ),
        base_scores=lambda wildcards: (
            f"{RUN}/scores/base/{wildcards.benchmark}.parquet"
            if CFG.beside_base(wildcards.method, wildcards.benchmark)
            else []
        ),
        prompts=prompts_of,
        q16=f"{RUN}/q16.safetensors",
    output:
        f"{RUN}/scores/{{method}}/{{benchmark}}.parquet",
    log:
        f"{LOGS}/score/{{method}}/{{benchmark}}.log",
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
    params:
        judges=CFG.judges.model_dump(),
        version=STAGE_VERSION["score"],
    message:
        "Score {wildcards.method} on {wildcards.benchmark}"
    script:
        "../scripts/score.py"


rule metrics:
    input:
        [f"{RUN}/scores/{method}/{benchmark}.parquet" for method, benchmark in MEASURED],
    output:
        f"{RUN}/metrics.parquet",
    log:
        f"{LOGS}/metrics.log",
    group:
        "report"  # one wait in the queue for both
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
    params:
        cells=MEASURED,
        kinds=CFG.kinds(),
        bootstrap=CFG.evaluate.bootstrap,
        fid_reference=CFG.evaluate.fid_reference,
        seed=CFG.seed,
        version=STAGE_VERSION["metrics"],
    message:
        "Metrics with bootstrap intervals"
    script:
        "../scripts/metrics.py"
