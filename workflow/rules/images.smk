# Images of prompt pairs, of retain prompts, and of every cell of the evaluation matrix.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   prompts/<category>.parquet                   prompt pairs
#   retain/prompts.parquet                       harmless prompts
#   benchmarks/<benchmark>.parquet               prompts to report on
#   attacks/<attack>/<method>.parquet            prompts found against a method
#   model.json                                   the model can be loaded
#   experts/, merged/, baselines/, ablation/     weights that a method renders with
#   tuning/<method>.json                         the scale of its LoRA
# Outputs:
#   pairs/<category>/<shard>.parquet             both images of each pair, same seed
#   retain/images.parquet                        images of the retain prompts
#   images/<method>/<benchmark>/<shard>.parquet  images of a cell


if CFG.prompts.brings_images:

    rule read_pairs:
        input:
            prompts=f"{RUN}/prompts/{{category}}.parquet",
        output:
            f"{RUN}/pairs/{{category}}/{{shard}}.parquet",
        log:
            f"{LOGS}/read_pairs/{{category}}/{{shard}}.log",
        conda:
            CONDA
        threads: CFG.resources.threads
        resources:
            mem_mb=memory,
            runtime=CFG.resources.runtime,
        params:
            size=(CFG.model.height, CFG.model.width),
            shards=CFG.pairs.shards,
            version=STAGE_VERSION["render"],
        message:
            "Read pairs: {wildcards.category}, shard {wildcards.shard}"
        script:
            "../scripts/read_pairs.py"

else:

    rule render_pairs:
        input:
            prompts=f"{RUN}/prompts/{{category}}.parquet",
            model=f"{RUN}/model.json",
        output:
            f"{RUN}/pairs/{{category}}/{{shard}}.parquet",
        log:
            f"{LOGS}/render_pairs/{{category}}/{{shard}}.log",
        benchmark:
            f"{TIMINGS}/render_pairs/{{category}}/{{shard}}.tsv"
        conda:
            CONDA
        threads: CFG.resources.threads
        resources:
            mem_mb=memory,
            runtime=CFG.resources.runtime,
            gpu=CFG.resources.gpu,
        params:
            model=MODEL,
            shards=CFG.pairs.shards,
            seed=CFG.seed,
            version=STAGE_VERSION["render"],
        message:
            "Render pairs: {wildcards.category}, shard {wildcards.shard}"
        script:
            "../scripts/render_pairs.py"


rule render_retain:
    input:
        prompts=f"{RUN}/retain/prompts.parquet",
        model=f"{RUN}/model.json",
    output:
        f"{RUN}/retain/images.parquet",
    log:
        f"{LOGS}/render_retain.log",
    benchmark:
        f"{TIMINGS}/render_retain.tsv"
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
        gpu=CFG.resources.gpu,
    params:
        model=MODEL,
        version=STAGE_VERSION["render"],
    message:
        "Render retain prompts"
    script:
        "../scripts/render_retain.py"


rule render_benchmark:
    input:
        unpack(method_inputs),
        prompts=prompts_of,
        model=f"{RUN}/model.json",
    output:
        f"{RUN}/images/{{method}}/{{benchmark}}/{{shard}}.parquet",
    log:
        f"{LOGS}/render_benchmark/{{method}}/{{benchmark}}/{{shard}}.log",
    benchmark:
        f"{TIMINGS}/render_benchmark/{{method}}/{{benchmark}}/{{shard}}.tsv"
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
        gpu=CFG.resources.gpu,
    params:
        model=MODEL,
        shards=CFG.evaluate.shards,
        cell=lambda wildcards: CFG.cell(wildcards.method, wildcards.benchmark)._asdict(),
        baselines=lambda wildcards: asked_of(wildcards.method),
        version=STAGE_VERSION["render"],
    message:
        "Render {wildcards.benchmark} with {wildcards.method}"
    script:
        "../scripts/render_benchmark.py"
