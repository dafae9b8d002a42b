# Methods leave the workflow, each in a folder with a model card: `snakemake results/<run>/export/<method>/<format>`.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   model.json                                   the model can be loaded
#   experts/, merged/, baselines/, ablation/     weights of the method
#   tuning/<method>.json                         the scale of its LoRA
#   externals/<name>.json                        that the model of others can be opened
#   metrics.parquet                              what the card says was measured, where it is there
# Outputs:
#   export/<method>/<format>/                    which formats: src/safetydpo/export/registry.py


rule export:
    input:
        unpack(export_inputs),
        model=f"{RUN}/model.json",
    output:
        directory(f"{RUN}/export/{{method}}/{{format}}"),
    log:
        f"{LOGS}/export/{{method}}/{{format}}.log",
    wildcard_constraints:
        format="|".join(FORMATS),
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
    params:
        model=MODEL,
        baselines=lambda wildcards: asked_of(wildcards.method),
        rank=export_rank,
        dtype=CFG.export.dtype,
        version=STAGE_VERSION["export"],
    message:
        "Export {wildcards.method} as {wildcards.format}"
    script:
        "../scripts/export.py"
