from safetydpo.config.loading import load_config
from safetydpo.running.jobs import importing, job, model_of

with job(snakemake):
    with importing():
        from safetydpo.models.stage import check_model

    # of the config, not of the params: what else is asked of a model needs no other, and redoes nothing
    config = load_config(snakemake.config)
    check_model(model_of(snakemake), snakemake.output[0], config.targets(), config.asked())
