from safetydpo.config import Baselines
from safetydpo.jobs import job, model_of

with job(snakemake):
    from safetydpo.baselines import erase

    p, name = snakemake.params, snakemake.wildcards.eraser
    erase(name, model_of(snakemake), Baselines(**p.baselines), p.seed, p.checkpoints, snakemake.output[0])
