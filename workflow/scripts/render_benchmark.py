from safetydpo.config.baselines import Baselines
from safetydpo.running.jobs import importing, job, model_of, scale_of

with job(snakemake):
    with importing():
        from safetydpo.images.stage import render_prompts

    i, p = snakemake.input, snakemake.params
    render_prompts(
        i.prompts,
        model_of(snakemake),
        snakemake.output[0],
        shard=int(snakemake.wildcards.shard),
        shards=p.shards,
        n=p.cell["n"],
        category=p.cell["category"],
        method=snakemake.wildcards.method,
        baselines=Baselines(**p.baselines),
        weights=i.get("weights"),
        scale=scale_of(snakemake),
    )
