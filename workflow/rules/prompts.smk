# Prompt pairs of each category, and the sets of prompts that are rendered by themselves. They come first, so that a
# file which is missing or unreadable is said before anything is rendered.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   prompts.path, prompts.test_path      files of pairs, and of prompts that must not train
#   benchmarks[].path                    files of prompts to report on
#   train.preserve.path, tune.path       files of harmless prompts, of tuning prompts
#   prompts.llm.concepts, .instructions  what a language model is asked, for source openai
#   model.json                           where a filter asks the model's text encoder
# Outputs:
#   config.yaml                          the resolved config
#   concepts/<category>.parquet          source openai: concepts, which you may edit
#   prompts/<category>.parquet           prompt pairs
#   rejected/<category>.parquet          what was not used, and why
#   benchmarks/<benchmark>.parquet       prompts to report on
#   retain/prompts.parquet               harmless prompts of the preservation term
#   tuning/prompts.parquet               prompts that choose the LoRA scale


localrules:
    resolved_config,
    concepts,
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


rule concepts:
    input:
        lambda wildcards: present(f"{CFG.prompts.llm.concepts}/{wildcards.category}.yaml"),
    output:
        f"{RUN}/concepts/{{category}}.parquet",
    log:
        f"{LOGS}/concepts/{{category}}.log",
    priority: 100
    conda:
        CONDA
    params:
        **changed(*CONCEPTS),
        # no more than this: a person may have edited the file, and would lose it to a change of another key
        category=lambda wildcards: CFG.category(wildcards.category).model_dump(),
        expand=CFG.prompts.expand_concepts,
        words=CFG.prompts.llm.words if CFG.prompts.llm else 0,
        journals=f"{RUN}/journal",
    message:
        "Concepts: {wildcards.category}"
    script:
        "../scripts/concepts.py"


rule prompts:
    input:
        present(CFG.prompts.path, CFG.prompts.test_path),
        concepts=f"{RUN}/concepts/{{category}}.parquet" if CFG.prompts.written else [],
        model=f"{RUN}/model.json" if CFG.prompts.needs_encoder else [],
    output:
        prompts=f"{RUN}/prompts/{{category}}.parquet",
        rejected=f"{RUN}/rejected/{{category}}.parquet",
    log:
        f"{LOGS}/prompts/{{category}}.log",
    priority: 100
    conda:
        CONDA
    params:
        **changed(CFG.prompts.path, CFG.prompts.test_path),
        category=lambda wildcards: CFG.category(wildcards.category).model_dump(),
        prompts=PROMPTS,
        instructions=[digest(path) for path in INSTRUCTIONS],  # an edit of an instruction asks anew
        model=MODEL if CFG.prompts.needs_encoder else None,
        journals=f"{RUN}/journal",  # of the language model's answers; no output, so that Snakemake keeps it
        seed=CFG.seed,
        version=STAGE_VERSION["prompts"],
    message:
        "Prompt pairs: {wildcards.category}"
    script:
        "../scripts/prompts.py"


rule benchmark_prompts:
    input:
        lambda wildcards: present(CFG.benchmark(wildcards.benchmark).path),
        pairs=lambda wildcards: PAIRS if CFG.benchmark(wildcards.benchmark).source == "split" else [],
    output:
        f"{RUN}/benchmarks/{{benchmark}}.parquet",
    log:
        f"{LOGS}/benchmark_prompts/{{benchmark}}.log",
    priority: 100
    conda:
        CONDA
    params:
        **changed(*(benchmark.path for benchmark in CFG.benchmarks)),
        benchmark=lambda wildcards: CFG.benchmark(wildcards.benchmark).model_dump(),
        n=CFG.evaluate.n,
        # a file has categories of its own
        categories=lambda wildcards: (CATEGORIES if CFG.benchmark(wildcards.benchmark).asks_demo_for_categories else []),
        near=CFG.prompts.near,  # by which prompts are held out of training
        seed=CFG.seed,
        version=STAGE_VERSION["benchmark"],
    message:
        "Benchmark prompts: {wildcards.benchmark}"
    script:
        "../scripts/benchmark_prompts.py"


rule retain_prompts:
    input:
        present(CFG.train.preserve.path),
        complete(lacks_retain_prompts(CFG)),
    output:
        f"{RUN}/retain/prompts.parquet",
    log:
        f"{LOGS}/retain_prompts.log",
    priority: 100
    conda:
        CONDA
    params:
        **changed(CFG.train.preserve.path),
        lacks=lacks_retain_prompts(CFG),
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
        complete(lacks_tuning_prompts(CFG)),
    output:
        f"{RUN}/tuning/prompts.parquet",
    log:
        f"{LOGS}/tuning_prompts.log",
    priority: 100
    conda:
        CONDA
    params:
        **changed(CFG.tune.path),
        lacks=lacks_tuning_prompts(CFG),
        tune=CFG.tune.model_dump(),
        categories=[] if CFG.tune.path else CATEGORIES,
        seed=CFG.seed,
        version=STAGE_VERSION["benchmark"],
    message:
        "Tuning prompts"
    script:
        "../scripts/tuning_prompts.py"
