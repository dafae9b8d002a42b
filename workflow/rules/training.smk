# One LoRA expert per category with Diffusion-DPO; All-single: one LoRA on all pairs with the experts' total budget.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   features/<category>/<shard>.safetensors              of pairs
#   harden/<round>/features/<category>.safetensors       of pairs that adversarial rounds added
#   retain/features.safetensors                          of retain prompts, where train.preserve.weight > 0
# Outputs:
#   experts/<category>/pytorch_lora_weights.safetensors  the LoRA
#   experts/<category>/training.parquet, README.md       every step; the model card
#   experts/all-single/...                               the same
#   checkpoints/<category>/                              no outputs, so that a retry finds them


rule train_expert:
    input:
        features=lambda wildcards: features_until(wildcards.category, CFG.harden.rounds),
        retain=f"{RUN}/retain/features.safetensors" if PRESERVE else [],
    output:
        lora=f"{RUN}/experts/{{category}}/pytorch_lora_weights.safetensors",
        log=f"{RUN}/experts/{{category}}/training.parquet",
        card=f"{RUN}/experts/{{category}}/README.md",
    log:
        f"{LOGS}/train_expert/{{category}}.log",
    benchmark:
        f"{TIMINGS}/train_expert/{{category}}.tsv"
    conda:
        CONDA
    threads: CFG.resources.threads * CFG.train.gpus
    resources:
        mem_mb=lambda wildcards, attempt: CFG.resources.mem_mb * CFG.train.gpus * attempt,  # a model per process
        runtime=CFG.resources.runtime,
        gpu=CFG.train.gpus if CFG.resources.gpu else 0,
    params:
        model=MODEL,
        train=train_params(CFG.train),
        steps=CFG.train.steps,
        checkpoints=f"{RUN}/checkpoints/{{category}}",
        seed=CFG.seed,
        version=STAGE_VERSION["train"],
    message:
        "Train expert: {wildcards.category}"
    script:
        "../scripts/train_expert.py"


use rule train_expert as train_all_single with:
    input:
        features=[path for category in CATEGORIES for path in features_until(category, CFG.harden.rounds)],
        retain=f"{RUN}/retain/features.safetensors" if PRESERVE else [],
    output:
        lora=f"{RUN}/experts/all-single/pytorch_lora_weights.safetensors",
        log=f"{RUN}/experts/all-single/training.parquet",
        card=f"{RUN}/experts/all-single/README.md",
    log:
        f"{LOGS}/train_all_single.log",
    benchmark:
        f"{TIMINGS}/train_all_single.tsv"
    priority: 10  # the longest job: start it first
    params:
        model=MODEL,
        train=train_params(CFG.train_of_all_single()),
        steps=CFG.train_of_all_single().steps,
        checkpoints=f"{RUN}/checkpoints/all-single",
        seed=CFG.seed,
        version=STAGE_VERSION["train"],
    message:
        "Train All-single, the experts' budget on all pairs"
