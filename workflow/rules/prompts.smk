# Prompt pairs per category, and the prompt sets that are rendered by themselves. They come first, so that a file which is
# missing or unreadable is said before anything is rendered.


localrules:
    resolved_config,
    prompts,
    benchmark_prompts,
    retain_prompts,
    tuning_prompts,


rule resolved_config:
    output:
        f"{RUN}/config.yaml",
    log:
        f"{LOGS}/resolved_config.log",
    conda:
        CONDA
    params:
        config=CFG.model_dump(mode="json"),
    script:
        "../scripts/resolved_config.py"


rule prompts:
    input:
        lambda wildcards: present(CFG.prompts.path),
    output:
        f"{RUN}/prompts/{{category}}.parquet",
    log:
        f"{LOGS}/prompts/{{category}}.log",
    priority: 100
    conda:
        CONDA
    params:
        category=lambda wildcards: CFG.category(wildcards.category).model_dump(),
        prompts=CFG.prompts.model_dump(),
        seed=CFG.seed,
        version=STAGE_VERSION["prompts"],
    message:
        "Prompt pairs: {wildcards.category}"
    script:
        "../scripts/prompts.py"


rule benchmark_prompts:
    input:
        lambda wildcards: present(CFG.benchmark(wildcards.benchmark).path),
    output:
        f"{RUN}/benchmarks/{{benchmark}}.parquet",
    log:
        f"{LOGS}/benchmark_prompts/{{benchmark}}.log",
    priority: 100
    conda:
        CONDA
    params:
        benchmark=lambda wildcards: CFG.benchmark(wildcards.benchmark).model_dump(),
        n=CFG.evaluate.n,
        # a file has categories of its own
        categories=lambda wildcards: (CATEGORIES if CFG.benchmark(wildcards.benchmark).asks_demo_for_categories else []),
        seed=CFG.seed,
        version=STAGE_VERSION["benchmark"],
    message:
        "Benchmark prompts: {wildcards.benchmark}"
    script:
        "../scripts/benchmark_prompts.py"


rule retain_prompts:
    input:
        present(CFG.train.preserve.path),
    output:
        f"{RUN}/retain/prompts.parquet",
    log:
        f"{LOGS}/retain_prompts.log",
    priority: 100
    conda:
        CONDA
    params:
        # the weight and the batch are training's business
        preserve=CFG.train.preserve.model_dump(include={"prompts", "path"}),
        seed=CFG.seed,
        version=STAGE_VERSION["benchmark"],
    message:
        "Retain prompts for the preservation term"
    script:
        "../scripts/retain_prompts.py"


rule tuning_prompts:
    input:
        present(CFG.tune.path),
    output:
        f"{RUN}/tuning/prompts.parquet",
    log:
        f"{LOGS}/tuning_prompts.log",
    priority: 100
    conda:
        CONDA
    params:
        tune=CFG.tune.model_dump(),
        categories=[] if CFG.tune.path else CATEGORIES,
        seed=CFG.seed,
        version=STAGE_VERSION["benchmark"],
    message:
        "Tuning prompts"
    script:
        "../scripts/tuning_prompts.py"
