from safetydpo.running.jobs import importing, job

with job(snakemake):
    with importing():
        from safetydpo.images.stage import read_pairs

    p = snakemake.params
    shard = int(snakemake.wildcards.shard)
    read_pairs(snakemake.input.prompts, tuple(p.size), shard, p.shards, snakemake.output[0])
