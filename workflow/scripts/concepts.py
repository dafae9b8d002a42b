from safetydpo.config.prompts import Category, Prompts
from safetydpo.running.jobs import importing, job

with job(snakemake):
    with importing():
        from safetydpo.prompts.stage import write_concepts

    p, config = snakemake.params, Prompts(**snakemake.config["prompts"])
    write_concepts(Category(**p.category), config, p.journals, snakemake.output[0])
