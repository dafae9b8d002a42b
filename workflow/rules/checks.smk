# That the model, the judges and the models of others can be loaded: said before anything is rendered or trained.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   model.id                                 folder or hub id of the pipeline
#   judges.q16_prompts, judges.q16_clip      Q16's files
#   judges.clip_score, judges.detector_path  files of the other judges
#   baselines.externals                      models of others
# Outputs:
#   model.json                               what the model is
#   judges.json                              what the judges are
#   q16.safetensors                          Q16's prompts, so that a pickle is read once
#   externals/<name>.json                    what the external models are, where one is rendered


localrules:
    check_model,
    check_judges,
    check_external,


rule check_model:
    output:
        f"{RUN}/model.json",
    log:
        f"{LOGS}/check_model.log",
    conda:
        CONDA
    params:
        model=MODEL,
        version=STAGE_VERSION["model"],
    message:
        "Model: {params.model[id]}"
    script:
        "../scripts/check_model.py"


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
        **changed(CFG.judges.q16_prompts),
        judges=CFG.judges.model_dump(),
    message:
        "Judges: {params.judges[q16_clip]}, {params.judges[clip_score]}"
    script:
        "../scripts/check_judges.py"


rule check_external:
    output:
        f"{RUN}/externals/{{external}}.json",
    log:
        f"{LOGS}/check_external/{{external}}.log",
    priority: 100  # as the judges
    conda:
        CONDA
    params:
        baselines=lambda wildcards: asked_of(f"external-{wildcards.external}"),
        model=MODEL,
        version=STAGE_VERSION["model"],
    message:
        "External model: {wildcards.external}"
    script:
        "../scripts/check_external.py"
