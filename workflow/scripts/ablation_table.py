from pathlib import Path

from safetydpo.config.judges import Verdict
from safetydpo.running.jobs import importing, job

with job(snakemake):
    with importing():
        from safetydpo.report.stage import write_ablation

    i, p, folder = snakemake.input, snakemake.params, Path(snakemake.output[0]).parent
    scores = dict(zip(map(tuple, p.cells), i.scores, strict=True))
    verdict = Verdict(**p.verdict)
    write_ablation(snakemake.wildcards.study, scores, p.kinds, verdict, i.judges, p.bootstrap, p.seed, folder)
