# Judges on every cell of the matrix, and the long table of metrics.


localrules:
    check_judges,


MEASURED = [*CFG.cells(), *CFG.attack_cells()]


rule check_judges:
    input:
        present(CFG.judges.q16_prompts),
    output:
        judges=f"{RUN}/judges.json",
        q16=f"{RUN}/q16.safetensors",
    log:
        f"{LOGS}/check_judges.log",
    priority: 100  # a judge that cannot be loaded is said before anything is rendered or trained
    conda:
        CONDA
    params:
        judges=CFG.judges.model_dump(),
    message:
        "Judges: {params.judges[q16_clip]}, {params.judges[clip_score]}"
    script:
        "../scripts/check_judges.py"


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
