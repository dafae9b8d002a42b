from safetydpo.config import Category, Prompts
from safetydpo.jobs import job

with job(snakemake):
    from safetydpo.prompts import write_concepts

    p, config = snakemake.params, Prompts(**snakemake.config["prompts"])
    write_concepts(Category(**p.category), config, p.journals, snakemake.output[0])
