from safetydpo.config.baselines import Baselines
from safetydpo.running.jobs import importing, job, model_of

with job(snakemake):
    with importing():
        from safetydpo.methods.stage import check_external

    name, baselines = snakemake.wildcards.external, Baselines(**snakemake.params.baselines)
    check_external(name, model_of(snakemake), baselines, snakemake.output[0])
