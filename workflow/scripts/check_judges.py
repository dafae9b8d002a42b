from safetydpo.running.jobs import importing, job, looks_of

with job(snakemake):
    with importing():
        from safetydpo.judges.stage import check_judges

    check_judges(looks_of(snakemake), snakemake.output[0], snakemake.params.answers)
