from safetydpo.config.loading import load_config
from safetydpo.running.jobs import job, model_of

with job(snakemake):
    from safetydpo.models.stage import check_model

    # of the config, not of the params: other targets need no other model, and redo nothing but the training
    targets = load_config(snakemake.config).targets()
    check_model(model_of(snakemake), snakemake.output[0], targets)
