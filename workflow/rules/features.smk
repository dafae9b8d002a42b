# What training needs of images and captions, computed once.


rule features:
    input:
        images=f"{RUN}/pairs/{{category}}/{{shard}}.parquet",
        prompts=f"{RUN}/prompts/{{category}}.parquet",
        model=f"{RUN}/model.json",
    output:
        f"{RUN}/features/{{category}}/{{shard}}.safetensors",
    log:
        f"{LOGS}/features/{{category}}/{{shard}}.log",
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
        gpu=CFG.resources.gpu,
    params:
        model=MODEL,
        flip=CFG.train.flip > 0,
        version=STAGE_VERSION["features"],
    message:
        "Features: {wildcards.category}, shard {wildcards.shard}"
    script:
        "../scripts/features.py"


rule retain_features:
    input:
        images=f"{RUN}/retain/images.parquet",
        prompts=f"{RUN}/retain/prompts.parquet",
        model=f"{RUN}/model.json",
    output:
        f"{RUN}/retain/features.safetensors",
    log:
        f"{LOGS}/retain_features.log",
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
        gpu=CFG.resources.gpu,
    params:
        model=MODEL,
        flip=CFG.train.flip > 0,
        version=STAGE_VERSION["features"],
    message:
        "Features: retain prompts"
    script:
        "../scripts/retain_features.py"
