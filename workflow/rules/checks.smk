# That the model, the judges and the models of others can be loaded, and verdicts be told: said before anything is
# rendered or trained.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   model.id                                 folder or hub id of the pipeline
#   judges.panel, judges.clip_score          the judges' models and files
#   judges.verdicts                          rules over their scores
#   baselines.externals                      models of others
# Outputs:
#   model.json                               what the model is
#   judges.json                              what the judges are
#   judges/<judge>.safetensors               what Q16's prompts or heads are, so that a pickle is read once
#   verdicts.json                            the rules, whose labels the judges have
#   answers/<judge>.jsonl                    what judges behind servers answered; no output, so that a retry finds it
#   externals/<name>.json                    what the external models are, where one is rendered


localrules:
    check_model,
    check_judges,
    check_verdicts,
    copy_judge,
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
        present(*inside(CFG.judges.user_files)),
    output:
        f"{RUN}/judges.json",
    log:
        f"{LOGS}/check_judges.log",
    priority: 100  # a judge that cannot be loaded is said before anything is rendered or trained
    conda:
        CONDA
    params:
        **changed(*CFG.judges.user_files),
        judges=LOOKS,
        answers=ANSWERS,
    message:
        f"Judges: {', '.join(judge.name for judge in CFG.judges.panel)}, CLIPScore"
    script:
        "../scripts/check_judges.py"


rule copy_judge:
    input:
        lambda wildcards: present(*inside([CFG.judges.judge(wildcards.judge).path])),
    output:
        f"{RUN}/judges/{{judge}}.safetensors",
    log:
        f"{LOGS}/copy_judge/{{judge}}.log",
    priority: 100
    conda:
        CONDA
    params:
        path=lambda wildcards: CFG.judges.judge(wildcards.judge).path,
        kind=lambda wildcards: CFG.judges.judge(wildcards.judge).judge,
        changed=lambda wildcards: changed(CFG.judges.judge(wildcards.judge).path),
    message:
        "Pickles of {wildcards.judge}"
    script:
        "../scripts/copy_judge.py"


rule check_verdicts:
    input:
        f"{RUN}/judges.json",
    output:
        f"{RUN}/verdicts.json",
    log:
        f"{LOGS}/check_verdicts.log",
    priority: 100
    conda:
        CONDA
    params:
        verdicts=CFG.judges.model_dump()["verdicts"],
    message:
        f"Verdicts: {', '.join(verdict.name for verdict in CFG.judges.verdicts)}"
    script:
        "../scripts/check_verdicts.py"


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
