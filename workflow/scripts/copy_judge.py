from safetydpo.running.jobs import importing, job

with job(snakemake):
    with importing():
        from safetydpo.judges.stage import copy_judge

    copy_judge(snakemake.params.kind, snakemake.params.path, snakemake.output[0])
