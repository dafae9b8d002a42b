# Tables, figures and the page that people read; `snakemake --report` shows the same tables and figures.

WHOLE = [cell for cell in CFG.cells() if not cell[0].startswith("expert-")]
CURVES = [f"{RUN}/tuning/merged-{s}.parquet" for s in CFG.merge.strategies] + [f"{RUN}/tuning/all-single.parquet"]
TABLES = ["main", "categories", "experts"] + (["merging"] if len(CFG.tune.scales) > 1 else [])
FIGURES = ["categories", "training"]
FIGURES += ["merging"] if len(CFG.tune.scales) > 1 else []
FIGURES += ["coactivation"] if "co-merge" in CFG.merge.strategies else []


rule report:
    input:
        f"{RUN}/metrics.parquet",
        f"{RUN}/model.json",
        CURVES,
        [path for cell in WHOLE for path in images_of(*cell)],
        [f"{RUN}/scores/{method}/{benchmark}.parquet" for method, benchmark in WHOLE],
        expand(f"{RUN}/experts/{{expert}}/training.parquet", expert=[*CATEGORIES, "all-single"]),
        f"{RUN}/merged/co-merge/coactivation.parquet" if "co-merge" in CFG.merge.strategies else [],
    output:
        tables=report(expand(f"{RUN}/tables/{{name}}.csv", name=TABLES), category="Tables"),
        figures=report(expand(f"{RUN}/figures/{{name}}.svg", name=FIGURES), category="Figures"),
        page=f"{RUN}/report.html",
    log:
        f"{LOGS}/report.log",
    conda:
        CONDA
    threads: CFG.resources.threads
    resources:
        mem_mb=memory,
        runtime=CFG.resources.runtime,
    params:
        run=RUN,
        # batch size, device and resources change no result
        config=CFG.model_dump(mode="json", exclude={"model": {"batch_size", "device"}, "resources": True}),
        version=STAGE_VERSION["report"],
    message:
        "Report"
    script:
        "../scripts/report.py"
