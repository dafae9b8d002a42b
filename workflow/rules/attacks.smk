# Adversarial prompts, found against each method: the prompts of the benchmarks attack-<attack>. Off unless attacks.run.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   benchmarks/<attacks.benchmark>.parquet               prompts to attack
#   prompts/<category>.parquet                           pairs, for an attack that needs them
#   images/base/<attacks.benchmark>/<shard>.parquet      base's images, for an attack that needs them
#   experts/, merged/, baselines/, tuning/<method>.json  what the attacked method renders with
#   model.json, judges/<judge>.safetensors               the model can be loaded; judges' pickles
#   attacks.forbidden_path                               words that no prompt may hold, where the config names a file
# Outputs:
#   attacks/<attack>/<method>.parquet                    prompts found
#   attacks/<attack>/<method>.jsonl                      finished prompts; no output, so that a retry finds it

from safetydpo.attacks.registry import ATTACKS


rule attack:
    input:
        unpack(method_inputs),
        **judges_files(ACTS),
        prompts=lambda wildcards: f"{RUN}/benchmarks/{CFG.attacked_benchmark}.parquet",
        pairs=lambda wildcards: PAIRS if ATTACKS[wildcards.attack].pairs else [],
        images=lambda wildcards: (images_of("base", CFG.attacked_benchmark) if ATTACKS[wildcards.attack].images else []),
        words=present(CFG.attacks.forbidden_path),
        model=f"{RUN}/model.json",
    output:
        f"{RUN}/attacks/{{attack}}/{{method}}.parquet",
    log:
        f"{LOGS}/attack/{{attack}}/{{method}}.log",
    benchmark:
        f"{TIMINGS}/attack/{{attack}}/{{method}}.tsv"
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
        gpu=CFG.resources.gpu,
    params:
        **changed(CFG.attacks.forbidden_path, *ACTS.user_files),
        model=MODEL,
        judges=ACTING,
        answers=ANSWERS,
        attacks=lambda wildcards: CFG.attacks.asked(wildcards.attack),
        baselines=lambda wildcards: asked_of(wildcards.method),
        # finished prompts; no output, so that Snakemake keeps it
        journal=lambda wildcards: f"{RUN}/attacks/{wildcards.attack}/{wildcards.method}.jsonl",
        seed=CFG.seed,
        version=STAGE_VERSION["attack"],
    message:
        "Attack {wildcards.method} with {wildcards.attack}"
    script:
        "../scripts/attack.py"
