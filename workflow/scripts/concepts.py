from safetydpo.config.prompts import Category, Prompts
from safetydpo.running.jobs import job

with job(snakemake):
    from safetydpo.prompts.stage import write_concepts

    p, config = snakemake.params, Prompts(**snakemake.config["prompts"])
    write_concepts(Category(**p.category), config, p.journals, snakemake.output[0])
