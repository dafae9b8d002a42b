from safetydpo.jobs import job, model_of

with job(snakemake):
    from safetydpo.features import write_features

    columns = {"safe": "safe_image", "unsafe": "unsafe_image"}
    i = snakemake.input
    write_features([i.images], i.prompts, columns, model_of(snakemake), "unsafe_prompt", snakemake.output[0])
