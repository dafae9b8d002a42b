from safetydpo.config import Tune
from safetydpo.jobs import job

with job(snakemake):
    from safetydpo.benchmarks import write_tuning

    p = snakemake.params
    write_tuning(Tune(**p.tune), p.categories, p.seed, snakemake.output[0])
