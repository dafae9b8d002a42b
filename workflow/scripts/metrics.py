from safetydpo.running.jobs import job

with job(snakemake):
    from safetydpo.evaluation.stage import write_metrics

    p = snakemake.params
    scores = dict(zip(map(tuple, p.cells), snakemake.input, strict=True))
    write_metrics(scores, p.kinds, p.bootstrap, p.fid_reference, p.seed, snakemake.output[0])
