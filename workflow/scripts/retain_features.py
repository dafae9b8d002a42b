from safetydpo.jobs import job, model_of

with job(snakemake):
    from safetydpo.features import write_features

    i = snakemake.input
    write_features([i.images], i.prompts, {"image": "image"}, model_of(snakemake), "prompt", snakemake.output[0])
