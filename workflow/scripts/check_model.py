from safetydpo.running.jobs import job, model_of

with job(snakemake):
    from safetydpo.models.stage import check_model

    check_model(model_of(snakemake), snakemake.output[0])
