from safetydpo.config.judges import Verdict
from safetydpo.running.jobs import importing, job

with job(snakemake):
    with importing():
        from safetydpo.evaluation.stage import write_metrics

    i, p, o = snakemake.input, snakemake.params, snakemake.output
    write_metrics(
        dict(zip(map(tuple, p.cells), i.scores, strict=True)),
        p.kinds,
        [Verdict(**verdict) for verdict in p.verdicts],
        p.bootstrap,
        p.fid_reference,
        i.reference or None,
        p.seed,
        o.metrics,
        o.differences,
        o.agreement,
        o.thresholds,
    )
