# Methods to compare with that change weights of the network. SLD and negative prompts act while rendering: no rule.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   model.json                              the model can be loaded
#   retain/prompts.parquet                  where baselines.uce.retain
# Outputs:
#   baselines/<eraser>/weights.safetensors  the weights that changed, and no others
#   checkpoints/<eraser>/                   no outputs, so that a retry finds them


rule erase:
    input:
        model=f"{RUN}/model.json",
        retain=lambda wildcards: (f"{RUN}/retain/prompts.parquet" if CFG.baselines.retains(wildcards.eraser) else []),
    output:
        f"{RUN}/baselines/{{eraser}}/weights.safetensors",
    log:
        f"{LOGS}/erase/{{eraser}}.log",
    benchmark:
        f"{TIMINGS}/erase/{{eraser}}.tsv"
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
        gpu=CFG.resources.gpu,
    params:
        model=MODEL,
        # another baseline's settings are none of its business
        baselines=lambda wildcards: CFG.baselines.model_dump(include=set(method_of(wildcards.eraser).kind.erased_with)),
        checkpoints=lambda wildcards: f"{RUN}/checkpoints/{wildcards.eraser}",
        seed=CFG.seed,
        version=STAGE_VERSION["baseline"],
    message:
        "Erase concepts with {wildcards.eraser}"
    script:
        "../scripts/erase.py"
