# Tables, figures and the page that people read; `snakemake --report` shows the same tables and figures.

# Image grids show what is one model on the benchmark's own seeds.
SHOWN = [cell for cell in CFG.cells() if cell[0] != "base-reseed" and not cell[0].startswith("expert-")]
CURVES = [f"{RUN}/tuning/merged-{s}.parquet" for s in CFG.merge.strategies] + [f"{RUN}/tuning/all-single.parquet"]
# What the run has the inputs for.
TUNED = ["merging"] if len(CFG.tune.scales) > 1 else []
FIRST_UNSAFE = next((b.name for b in CFG.benchmarks if b.kind == "unsafe"), None)
COMPARED = ["categories"] if any(benchmark == FIRST_UNSAFE for _, benchmark in SHOWN) else []
EXPERTS = ["experts"] if any(method.startswith("expert-") for method, _ in CFG.cells()) else []
COACTIVE = ["coactivation"] if "co-merge" in CFG.merge.strategies else []
SIMILAR = ["similarity"] if CFG.prompts.needs_encoder else []
BASE = ["datasets"] if any(method == "base" for method, _ in CFG.cells()) else []
ATTACKED = ["attacks"] if CFG.attack_names else []
COSTS = ["attack-costs"] if CFG.attack_names else []
TABLES = ["main", *BASE, *COMPARED, *EXPERTS, *TUNED, *ATTACKED, *COSTS, "prompts"]
PLOTS = [f"{name}.svg" for name in [*COMPARED, *TUNED, *COACTIVE, *SIMILAR, *ATTACKED, "training"]]
GRIDS = [f"grid-{benchmark}.png" for method, benchmark in SHOWN if method == "base"]


rule report:
    input:
        f"{RUN}/metrics.parquet",
        f"{RUN}/model.json",
        PAIRS,
        expand(f"{RUN}/rejected/{{category}}.parquet", category=CATEGORIES),
        CURVES,
        [path for cell in SHOWN for path in images_of(*cell)],
        [f"{RUN}/scores/{method}/{benchmark}.parquet" for method, benchmark in SHOWN],
        expand(f"{RUN}/experts/{{expert}}/training.parquet", expert=[*CATEGORIES, "all-single"]),
        expand(f"{RUN}/merged/co-merge/{{name}}.parquet", name=COACTIVE),
        f"{RUN}/retain/prompts.parquet" if PRESERVE else [],
        expand(f"{RUN}/attacks/{{attack}}/{{method}}.parquet", attack=CFG.attacks.run, method=CFG.attacks.methods),
    output:
        report(expand(f"{RUN}/tables/{{name}}.csv", name=TABLES), category="Tables"),
        report(expand(f"{RUN}/figures/{{name}}", name=[*PLOTS, *GRIDS]), category="Figures"),
        expand(f"{RUN}/tables/{{name}}.{{kind}}", name=TABLES, kind=["parquet", "md"]),
        page=f"{RUN}/report.html",
    log:
        f"{LOGS}/report.log",
    group:
        "report"
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
    params:
        config=CFG.model_dump(mode="json", exclude=MACHINE_KEYS | {"resources": True}),
        version=STAGE_VERSION["report"],
    message:
        "Report"
    script:
        "../scripts/report.py"
