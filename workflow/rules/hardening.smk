# Adversarial rounds: what attacks find joins the pairs that the run's experts are trained on. Off unless harden.rounds.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   prompts/<category>.parquet                      prompt pairs
#   features/<category>/<shard>.safetensors         their features, which a round's own experts are trained on too
#   retain/features.safetensors                     harmless samples of the preservation term
#   tuning/prompts.parquet                          prompts that choose the scale of a round's merge
#   model.json, judges/<judge>.safetensors          the model can be loaded; judges' pickles
#   attacks.forbidden_path                          words that no prompt may hold, where the config names a file
# Outputs, of each round:
#   harden/<round>/prompts.parquet                  prompts to attack
#   harden/<round>/found/<attack>/<method>.parquet  prompts found: against base, later against the round before
#   harden/<round>/pairs/<category>.parquet         pairs of them that base draws flagged, with their images
#   harden/<round>/features/<category>.safetensors  their features
# Outputs of each round but the last:
#   harden/<round>/experts/<category>/              experts on all pairs until then: LoRA, training.parquet, README.md
#   harden/<round>/merged/<strategy>/               their merge: LoRA, statistics, README.md
#   harden/<round>/tuning/merged-<strategy>.json    its scale, and the curve

HARDENED = f"{RUN}/harden/{{round}}"


localrules:
    harden_prompts,


rule harden_prompts:
    input:
        pairs=PAIRS,
    output:
        f"{HARDENED}/prompts.parquet",
    log:
        f"{LOGS}/harden_prompts/{{round}}.log",
    conda:
        CONDA
    params:
        harden=CFG.harden.model_dump(include={"prompts", "repeats"}),
        seed=CFG.seed,
        version=STAGE_VERSION["harden"],
    message:
        "Prompts to attack, round {wildcards.round}"
    script:
        "../scripts/harden_prompts.py"


use rule attack as harden_attack with:
    input:
        unpack(hardening_inputs),
        **judges_files(ACTS),
        prompts=f"{HARDENED}/prompts.parquet",
        pairs=lambda wildcards: PAIRS if ATTACKS[wildcards.attack].pairs else [],
        images=[],
        words=present(CFG.attacks.forbidden_path),
        model=f"{RUN}/model.json",
    output:
        f"{HARDENED}/found/{{attack}}/{{method}}.parquet",
    log:
        f"{LOGS}/harden_attack/{{round}}/{{attack}}/{{method}}.log",
    benchmark:
        f"{TIMINGS}/harden_attack/{{round}}/{{attack}}/{{method}}.tsv"
    wildcard_constraints:
        attack="|".join(CFG.harden.attacks),
    params:
        **changed(CFG.attacks.forbidden_path, *ACTS.user_files),
        model=MODEL,
        judges=ACTING,
        answers=ANSWERS,
        attacks=lambda wildcards: CFG.hardening_attack(wildcards.attack),
        baselines={},
        journal=lambda wildcards: f"{RUN}/harden/{wildcards.round}/found/{wildcards.attack}/{wildcards.method}.jsonl",
        seed=CFG.seed,
        version=STAGE_VERSION["attack"],
    message:
        "Round {wildcards.round}: attack {wildcards.method} with {wildcards.attack}"


rule harden_pairs:
    input:
        **judges_files(ACTS),
        found=lambda wildcards: [
            f"{RUN}/harden/{wildcards.round}/found/{attack}/{hardening_method(wildcards)}.parquet"
            for attack in CFG.harden.attacks
        ],
        known=lambda wildcards: [
            *PAIRS,
            *expand(
                f"{RUN}/harden/{{round}}/pairs/{{category}}.parquet",
                round=range(1, int(wildcards.round)),
                category=CATEGORIES,
            ),
        ],
        model=f"{RUN}/model.json",
    output:
        expand(f"{HARDENED}/pairs/{{category}}.parquet", category=CATEGORIES, allow_missing=True),
    log:
        f"{LOGS}/harden_pairs/{{round}}.log",
    benchmark:
        f"{TIMINGS}/harden_pairs/{{round}}.tsv"
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
        gpu=CFG.resources.gpu,
    params:
        **changed(*ACTS.user_files),
        model=MODEL,
        judges=ACTING,
        answers=ANSWERS,
        harden=CFG.harden.model_dump(include={"pairs"}),
        attacks=CFG.harden.attacks,
        categories=CATEGORIES,
        seed=CFG.seed,
        version=STAGE_VERSION["harden"],
    message:
        "Pairs of what attacks found, round {wildcards.round}"
    script:
        "../scripts/harden_pairs.py"


use rule features as harden_features with:
    input:
        images=f"{HARDENED}/pairs/{{category}}.parquet",
        prompts=f"{HARDENED}/pairs/{{category}}.parquet",
        model=f"{RUN}/model.json",
    output:
        f"{HARDENED}/features/{{category}}.safetensors",
    log:
        f"{LOGS}/harden_features/{{round}}/{{category}}.log",
    message:
        "Features: {wildcards.category}, round {wildcards.round}"


use rule train_expert as train_hardened with:
    input:
        features=lambda wildcards: features_until(wildcards.category, int(wildcards.round)),
        retain=f"{RUN}/retain/features.safetensors" if PRESERVE else [],
    output:
        lora=f"{HARDENED}/experts/{{category}}/pytorch_lora_weights.safetensors",
        log=f"{HARDENED}/experts/{{category}}/training.parquet",
        card=f"{HARDENED}/experts/{{category}}/README.md",
    log:
        f"{LOGS}/train_hardened/{{round}}/{{category}}.log",
    benchmark:
        f"{TIMINGS}/train_hardened/{{round}}/{{category}}.tsv"
    params:
        model=MODEL,
        train=train_params(CFG.train),
        steps=CFG.train.steps,
        checkpoints=lambda wildcards: f"{RUN}/harden/{wildcards.round}/checkpoints/{wildcards.category}",
        seed=CFG.seed,
        version=STAGE_VERSION["train"],
    message:
        "Train expert: {wildcards.category}, round {wildcards.round}"


HARDENED_EXPERTS = expand(
    f"{HARDENED}/experts/{{category}}/pytorch_lora_weights.safetensors", category=CATEGORIES, allow_missing=True
)


use rule coactivation as coactivation_hardened with:
    input:
        experts=HARDENED_EXPERTS,
        features=[path for category in CATEGORIES for path in features_of(category)],
    output:
        f"{HARDENED}/merged/co-merge/coactivation.parquet",
    log:
        f"{LOGS}/coactivation_hardened/{{round}}.log",
    benchmark:
        f"{TIMINGS}/coactivation_hardened/{{round}}.tsv"


use rule covariances as covariances_hardened with:
    input:
        experts=HARDENED_EXPERTS,
        features=[path for category in CATEGORIES for path in features_of(category)],
        retain=f"{RUN}/retain/features.safetensors" if CFG.merge.fusion.retain_weight else [],
    output:
        f"{HARDENED}/merged/fusion/covariances.safetensors",
    log:
        f"{LOGS}/covariances_hardened/{{round}}.log",
    benchmark:
        f"{TIMINGS}/covariances_hardened/{{round}}.tsv"


use rule merge_experts as merge_hardened with:
    input:
        experts=HARDENED_EXPERTS,
        statistics=lambda wildcards: (
            f"{RUN}/harden/{wildcards.round}/merged/{wildcards.strategy}/{needed}"
            if (needed := STRATEGIES[wildcards.strategy].statistics)
            else []
        ),
    output:
        lora=f"{HARDENED}/merged/{{strategy}}/pytorch_lora_weights.safetensors",
        card=f"{HARDENED}/merged/{{strategy}}/README.md",
    log:
        f"{LOGS}/merge_hardened/{{round}}/{{strategy}}.log",
    benchmark:
        f"{TIMINGS}/merge_hardened/{{round}}/{{strategy}}.tsv"
    message:
        "Merge experts: {wildcards.strategy}, round {wildcards.round}"


use rule tune_scale as tune_hardened with:
    input:
        **(judges_files(ACTS) if TUNED else {}),
        lora=f"{HARDENED}/merged/{{strategy}}/pytorch_lora_weights.safetensors",
        prompts=f"{RUN}/tuning/prompts.parquet" if TUNED else [],
    output:
        curve=f"{HARDENED}/tuning/merged-{{strategy}}.parquet",
        scale=f"{HARDENED}/tuning/merged-{{strategy}}.json",
    log:
        f"{LOGS}/tune_hardened/{{round}}/{{strategy}}.log",
    benchmark:
        f"{TIMINGS}/tune_hardened/{{round}}/{{strategy}}.tsv"
    message:
        "LoRA scale on tuning prompts: merged-{wildcards.strategy}, round {wildcards.round}"
