# What training needs of images and prompts, computed once: VAE posteriors and text embeddings.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   pairs/<category>/<shard>.parquet               images of pairs
#   prompts/<category>.parquet                     their prompts
#   retain/images.parquet, retain/prompts.parquet  the same of the preservation term
#   model.json                                     the model can be loaded
# Outputs:
#   features/<category>/<shard>.safetensors        of pairs
#   retain/features.safetensors                    of retain prompts


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
