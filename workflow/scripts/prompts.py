from safetydpo.config import Category, Prompts
from safetydpo.jobs import job

with job(snakemake):
    from safetydpo.prompts import write_pairs

    p = snakemake.params
    write_pairs(Category(**p.category), Prompts(**p.prompts), p.seed, snakemake.output[0])
