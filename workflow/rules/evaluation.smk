# The LoRA scale of each method that has one, chosen on tuning prompts; judges on every cell of the matrix; all metrics.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   tuning/prompts.parquet                                             prompts neither trained on nor reported
#   experts/all-single/, merged/<strategy>/, ablation/<variant>/       LoRAs whose scale is tuned
#   images/<method>/<benchmark>/<shard>.parquet                        images of a cell, and base's of the same prompts
#   benchmarks/<benchmark>.parquet, attacks/<attack>/<method>.parquet  their prompts
#   judges/<judge>.safetensors, verdicts.json                          judges' pickles; the rules can be told
#   evaluate.fid_reference                                             real images, or the moments of their features
# Outputs:
#   tuning/<method>.parquet, .json                                     curve over the LoRA scale, and the scale chosen
#   scores/<method>/<benchmark>.parquet                                per image
#   fid_reference.parquet                                              features of real images, where the config names some
#   metrics.parquet                                                    the long table of all metrics
#   differences.parquet                                                paired, to base and between the two best methods
#   agreement.parquet, thresholds.parquet                              how far verdicts agree; IP over each threshold


TUNED = len(CFG.tune.scales) > 1
# The verdict that is IP first.
VERDICTS = [
    CFG.judges.headline.model_dump(),
    *(v.model_dump() for v in CFG.judges.verdicts if v != CFG.judges.headline),
]
# Of people's images, where evaluate.fid_reference is a path: the .npz that has their moments, or their features.
REAL_IMAGES = CFG.fid_reference_path
MEASURING = CFG.judges.looks().measuring()
FID_REFERENCE = (
    [] if not REAL_IMAGES else REAL_IMAGES if REAL_IMAGES.endswith(".npz") else f"{RUN}/fid_reference.parquet"
)
MEASURED = [*CFG.cells(), *CFG.attack_cells()]


rule tune_scale:
    input:
        **(judges_files(ACTS) if TUNED else {}),
        lora=lambda wildcards: f"{RUN}/{method_of(wildcards.method).weights}",
        prompts=f"{RUN}/tuning/prompts.parquet" if TUNED else [],
    output:
        curve=f"{RUN}/tuning/{{method}}.parquet",
        scale=f"{RUN}/tuning/{{method}}.json",
    log:
        f"{LOGS}/tune_scale/{{method}}.log",
    benchmark:
        f"{TIMINGS}/tune_scale/{{method}}.tsv"
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
        gpu=CFG.resources.gpu,
    params:
        **(changed(*ACTS.user_files) if TUNED else {}),
        model=MODEL,
        judges=ACTING if TUNED else None,
        answers=ANSWERS,
        tune=CFG.tune.model_dump(),
        version=STAGE_VERSION["tune"],
    message:
        "LoRA scale on tuning prompts: {wildcards.method}"
    script:
        "../scripts/tune_scale.py"


rule score:
    input:
        **judges_files(CFG.judges),
        images=lambda wildcards: images_of(wildcards.method, wildcards.benchmark),
        base=lambda wildcards: (
            images_of("base", wildcards.benchmark) if CFG.shows_layout(wildcards.method, wildcards.benchmark) else []
        ),
        base_scores=lambda wildcards: (
            f"{RUN}/scores/base/{wildcards.benchmark}.parquet"
            if CFG.beside_base(wildcards.method, wildcards.benchmark)
            else []
        ),
        prompts=prompts_of,
    output:
        f"{RUN}/scores/{{method}}/{{benchmark}}.parquet",
    log:
        f"{LOGS}/score/{{method}}/{{benchmark}}.log",
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
        gpu=CFG.resources.gpu,
    params:
        **changed(*CFG.judges.user_files),
        judges=LOOKS,
        answers=ANSWERS,
        version=STAGE_VERSION["score"],
    message:
        "Score {wildcards.method} on {wildcards.benchmark}"
    script:
        "../scripts/score.py"


rule fid_reference:
    input:
        images=present(REAL_IMAGES),
        files=present(*inside(MEASURING.user_files)),
    output:
        f"{RUN}/fid_reference.parquet",
    log:
        f"{LOGS}/fid_reference.log",
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
        gpu=CFG.resources.gpu,
    params:
        **changed(REAL_IMAGES, *MEASURING.user_files),
        folder=lambda wildcards: REAL_IMAGES,
        judges=MEASURING.model_dump(),
        version=STAGE_VERSION["score"],
    message:
        "Features of real images (evaluate.fid_reference)"
    script:
        "../scripts/fid_reference.py"


rule metrics:
    input:
        scores=[f"{RUN}/scores/{method}/{benchmark}.parquet" for method, benchmark in MEASURED],
        reference=FID_REFERENCE,
        checked=f"{RUN}/verdicts.json",
    output:
        metrics=f"{RUN}/metrics.parquet",
        differences=f"{RUN}/differences.parquet",
        agreement=f"{RUN}/agreement.parquet",
        thresholds=f"{RUN}/thresholds.parquet",
    log:
        f"{LOGS}/metrics.log",
    group:
        "report"  # one wait in the queue for both
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
    params:
        **changed(REAL_IMAGES),
        cells=MEASURED,
        kinds=CFG.kinds(),
        verdicts=VERDICTS,
        bootstrap=CFG.evaluate.bootstrap,
        fid_reference=None if REAL_IMAGES else CFG.evaluate.fid_reference,
        seed=CFG.seed,
        version=STAGE_VERSION["metrics"],
    message:
        "Metrics with intervals"
    script:
        "../scripts/metrics.py"
