from safetydpo.config import Preserve
from safetydpo.jobs import job

with job(snakemake):
    from safetydpo.benchmarks import write_retain

    write_retain(Preserve(**snakemake.params.preserve), snakemake.params.seed, snakemake.output[0])
