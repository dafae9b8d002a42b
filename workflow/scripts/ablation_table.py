from pathlib import Path

from safetydpo.running.jobs import job

with job(snakemake):
    from safetydpo.report.stage import write_ablation

    p, folder = snakemake.params, Path(snakemake.output[0]).parent
    scores = dict(zip(map(tuple, p.cells), snakemake.input, strict=True))
    write_ablation(snakemake.wildcards.study, scores, p.kinds, p.bootstrap, p.seed, folder)
