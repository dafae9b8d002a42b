from safetydpo.running.jobs import importing, job, model_of

with job(snakemake):
    with importing():
        from safetydpo.features.stage import write_features

    i, flip = snakemake.input, snakemake.params.flip
    roles = {"image": ("image", "prompt")}
    write_features([i.images], i.prompts, roles, model_of(snakemake), snakemake.output[0], flip)
