from safetydpo.running.jobs import importing, job, looks_of

with job(snakemake):
    with importing():
        from safetydpo.evaluation.stage import write_scores

    i = snakemake.input
    judges, device = looks_of(snakemake), snakemake.config["model"].get("device", "auto")
    base_scores = i.base_scores or None
    write_scores(
        list(i.images),
        i.prompts,
        list(i.base),
        base_scores,
        judges,
        device,
        snakemake.output[0],
        snakemake.params.answers,
    )
