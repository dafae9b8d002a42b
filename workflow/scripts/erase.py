from safetydpo.config.baselines import Baselines
from safetydpo.running.jobs import importing, job, model_of

with job(snakemake):
    with importing():
        from safetydpo.baselines.stage import erase

    i, p, name = snakemake.input, snakemake.params, snakemake.wildcards.eraser
    config, retain = Baselines(**p.baselines), i.retain or None
    erase(name, model_of(snakemake), config, p.seed, p.checkpoints, snakemake.output[0], retain)
