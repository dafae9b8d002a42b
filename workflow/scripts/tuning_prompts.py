from safetydpo.config.evaluation import Tune
from safetydpo.running.jobs import importing, job

with job(snakemake):
    with importing():
        from safetydpo.prompts.stage import write_tuning

    p = snakemake.params
    write_tuning(Tune(**p.tune), p.categories, p.seed, snakemake.output[0])
