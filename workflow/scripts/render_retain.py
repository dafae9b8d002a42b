from safetydpo.running.jobs import importing, job, model_of

with job(snakemake):
    with importing():
        from safetydpo.images.stage import render_prompts

    render_prompts(snakemake.input.prompts, model_of(snakemake), snakemake.output[0])
