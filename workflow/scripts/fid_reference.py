from safetydpo.running.jobs import importing, job, looks_of

with job(snakemake):
    with importing():
        from safetydpo.evaluation.stage import write_reference

    device = snakemake.config["model"].get("device", "auto")
    write_reference(snakemake.params.folder, looks_of(snakemake), device, snakemake.output[0])
