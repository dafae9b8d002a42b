# That the model and the judges can be loaded: said before anything is rendered or trained.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   model.id                                 folder or hub id of the pipeline
#   judges.q16_prompts, judges.q16_clip      Q16's files
#   judges.clip_score, judges.detector_path  files of the other judges
# Outputs:
#   model.json                               what the model is
#   judges.json                              what the judges are
#   q16.safetensors                          Q16's prompts, so that a pickle is read once


localrules:
    check_model,
    check_judges,


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
        judges=CFG.judges.model_dump(),
    message:
        "Judges: {params.judges[q16_clip]}, {params.judges[clip_score]}"
    script:
        "../scripts/check_judges.py"
