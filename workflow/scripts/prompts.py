from safetydpo.config.prompts import Category, Prompts
from safetydpo.running.jobs import importing, job, model_of

with job(snakemake) as tell:
    with importing():
        from safetydpo.prompts.request import Request
        from safetydpo.prompts.stage import write_pairs

    i, o, p = snakemake.input, snakemake.output, snakemake.params
    config, model = Prompts(**snakemake.config["prompts"]), model_of(snakemake) if p.model else None
    alone = len(snakemake.config["categories"]) == 1
    request = Request(Category(**p.category), config, p.seed, model, i.concepts, p.journals, alone, tell)
    tell(write_pairs(request, o.prompts, o.rejected))
