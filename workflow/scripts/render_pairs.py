from safetydpo.running.jobs import importing, job, model_of

with job(snakemake):
    with importing():
        from safetydpo.images.stage import render_pairs

    p = snakemake.params
    shard = int(snakemake.wildcards.shard)
    render_pairs(snakemake.input.prompts, model_of(snakemake), shard, p.shards, p.seed, snakemake.output[0])
