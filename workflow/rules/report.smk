# Tables, figures and the page that people read; `snakemake --report` shows the same tables and figures.
#
# Inputs, in results/<run>/ or named by a key of the config:
#   metrics.parquet                           the long table
#   differences.parquet                       paired tests, by which the best is marked
#   agreement.parquet, thresholds.parquet     how verdicts differ, IP over thresholds
#   model.json, judges.json                   what was aligned, and who judged
#   externals/<name>.json                     what the models of others are
#   images/, scores/<method>/<benchmark>      image grids
#   attacks/<attack>/<method>.parquet         what attacks spend
# And where a method of the matrix is trained:
#   prompts/, rejected/<category>.parquet     counts of pairs
#   experts/<expert>/training.parquet         training curves
#   tuning/<method>.parquet                   curves over the LoRA scale
#   merged/co-merge/coactivation.parquet      who wins which layers
#   retain/prompts.parquet                    which benign kinds were retained
# Outputs:
#   tables/<table>.parquet, .csv, .md
#   figures/<plot>.svg, grid-<benchmark>.png, disagreement.png
#   report.html                               which of them: src/safetydpo/report/contents.py

from safetydpo.report.contents import contents, shown_cells, shown_externals

HAS = contents(CFG)
OF_TRAINING = [
    *PAIRS,
    *(f"{RUN}/rejected/{category}.parquet" for category in CATEGORIES),
    *(f"{RUN}/tuning/merged-{strategy}.parquet" for strategy in CFG.merge.strategies),
    f"{RUN}/tuning/all-single.parquet",
    *(f"{RUN}/experts/{expert}/training.parquet" for expert in [*CATEGORIES, "all-single"]),
    *([f"{RUN}/retain/prompts.parquet"] if PRESERVE else []),
]


rule report:
    input:
        expand(f"{RUN}/{{name}}.parquet", name=["metrics", "differences", "agreement", "thresholds"]),
        f"{RUN}/model.json",
        f"{RUN}/judges.json",
        [f"{RUN}/externals/{name}.json" for name in shown_externals(CFG)],
        OF_TRAINING if CFG.trains else [],
        [path for cell in shown_cells(CFG) for path in images_of(*cell)],
        [f"{RUN}/scores/{method}/{benchmark}.parquet" for method, benchmark in shown_cells(CFG)],
        [f"{RUN}/merged/co-merge/coactivation.parquet"] if "coactivation" in HAS.plots else [],
        expand(f"{RUN}/attacks/{{attack}}/{{method}}.parquet", attack=CFG.attacks.run, method=CFG.attacks.methods),
    output:
        report(expand(f"{RUN}/tables/{{name}}.csv", name=HAS.tables), category="Tables"),
        report(expand(f"{RUN}/figures/{{name}}", name=HAS.figures), category="Figures"),
        expand(f"{RUN}/tables/{{name}}.{{kind}}", name=HAS.tables, kind=["parquet", "md"]),
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
