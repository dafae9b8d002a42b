from safetydpo.config.training import Preserve
from safetydpo.running.jobs import importing, job

with job(snakemake):
    with importing():
        from safetydpo.prompts.stage import write_retain

    write_retain(Preserve(**snakemake.params.preserve), snakemake.params.seed, snakemake.output[0])
