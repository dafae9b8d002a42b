from pathlib import Path

from safetydpo.jobs import job, model_of
from safetydpo.methods import method_of, read_scale

with job(snakemake):
    from safetydpo.render import render_prompts

    lora = snakemake.input.get("lora")
    render_prompts(
        snakemake.input.prompts,
        model_of(snakemake),
        snakemake.output[0],
        shard=int(snakemake.wildcards.shard),
        shards=snakemake.params.shards,
        n=snakemake.params.cell["n"],
        category=snakemake.params.cell["category"],
        lora=Path(lora).parent if lora else None,
        scale=read_scale(snakemake.input.get("scale")),
        seed_offset=method_of(snakemake.wildcards.method).seed_offset,
    )
