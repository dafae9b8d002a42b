# Experts into one LoRA.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   experts/<category>/pytorch_lora_weights.safetensors  all experts
#   features/<category>/<shard>.safetensors              calibration prompts of co-activation and covariances
#   retain/features.safetensors                          harmless ones of fusion, where merge.fusion.retain_weight > 0
# Outputs:
#   merged/co-merge/coactivation.parquet                 which expert moves each unit most, and how often
#   merged/fusion/covariances.safetensors                what goes into each layer, and through each expert
#   merged/<strategy>/pytorch_lora_weights.safetensors   the LoRA
#   merged/<strategy>/README.md                          its model card

from safetydpo.merging.registry import STRATEGIES


rule coactivation:
    input:
        experts=expand(f"{RUN}/experts/{{category}}/pytorch_lora_weights.safetensors", category=CATEGORIES),
        features=[path for category in CATEGORIES for path in features_of(category)],
    output:
        f"{RUN}/merged/co-merge/coactivation.parquet",
    log:
        f"{LOGS}/coactivation.log",
    benchmark:
        f"{TIMINGS}/coactivation.tsv"
    group:
        "merge"  # two short jobs, one wait in the queue
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
    params:
        model=MODEL,
        merge=CFG.merge.model_dump(include={"calibration_prompts", "calibration_timesteps"}),
        categories=CATEGORIES,
        seed=CFG.seed,
        version=STAGE_VERSION["merge"],
    message:
        "Co-activation statistics of the experts"
    script:
        "../scripts/coactivation.py"


rule covariances:
    input:
        experts=expand(f"{RUN}/experts/{{category}}/pytorch_lora_weights.safetensors", category=CATEGORIES),
        features=[path for category in CATEGORIES for path in features_of(category)],
        retain=f"{RUN}/retain/features.safetensors" if CFG.merge.fusion.retain_weight else [],
    output:
        f"{RUN}/merged/fusion/covariances.safetensors",
    log:
        f"{LOGS}/covariances.log",
    benchmark:
        f"{TIMINGS}/covariances.tsv"
    group:
        "merge"
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
    params:
        model=MODEL,
        merge=CFG.merge.model_dump(
            include={"calibration_prompts": True, "calibration_timesteps": True, "fusion": {"retain_prompts"}}
        ),
        categories=CATEGORIES,
        seed=CFG.seed,
        version=STAGE_VERSION["merge"],
    message:
        "Covariances of the experts' inputs"
    script:
        "../scripts/covariances.py"


rule merge_experts:
    input:
        experts=expand(f"{RUN}/experts/{{category}}/pytorch_lora_weights.safetensors", category=CATEGORIES),
        statistics=lambda wildcards: (
            f"{RUN}/merged/{wildcards.strategy}/{needed}"
            if (needed := STRATEGIES[wildcards.strategy].statistics)
            else []
        ),
    output:
        lora=f"{RUN}/merged/{{strategy}}/pytorch_lora_weights.safetensors",
        card=f"{RUN}/merged/{{strategy}}/README.md",
    log:
        f"{LOGS}/merge_experts/{{strategy}}.log",
    benchmark:
        f"{TIMINGS}/merge_experts/{{strategy}}.tsv"
    group:
        "merge"
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
    params:
        model=MODEL,
        strategy=lambda wildcards: wildcards.get("strategy", CFG.merge.own),  # an ablation's variant has none
        merge=lambda wildcards: CFG.merge.asked(wildcards.get("strategy", CFG.merge.own)),
        categories=CATEGORIES,
        seed=CFG.seed,
        version=STAGE_VERSION["merge"],
    message:
        "Merge experts: {wildcards.strategy}"
    script:
        "../scripts/merge_experts.py"
