from safetydpo.config import Baselines
from safetydpo.jobs import job, model_of
from safetydpo.methods import read_scale

with job(snakemake):
    from safetydpo.render import render_prompts

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
        scale=read_scale(i.get("scale")),
    )
