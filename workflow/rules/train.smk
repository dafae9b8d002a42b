# One LoRA expert per category with Diffusion-DPO; All-single: one LoRA on all pairs with the experts' total budget.


rule train_expert:
    input:
        features=lambda wildcards: features_of(wildcards.category),
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
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
        gpu=CFG.resources.gpu,
    params:
        model=MODEL,
        train=CFG.train.model_dump(exclude={"all_single_steps"}),
        steps=CFG.train.steps,
        seed=CFG.seed,
        version=STAGE_VERSION["train"],
    message:
        "Train expert: {wildcards.category}"
    script:
        "../scripts/train_expert.py"


use rule train_expert as train_all_single with:
    input:
        features=[path for category in CATEGORIES for path in features_of(category)],
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
        train=CFG.train.model_dump(),
        steps=CFG.train.all_single_steps or CFG.train.steps * len(CATEGORIES),
        seed=CFG.seed,
        version=STAGE_VERSION["train"],
    message:
        "Train All-single, the experts' budget on all pairs"
