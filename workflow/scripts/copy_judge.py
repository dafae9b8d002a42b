from safetydpo.running.jobs import job

with job(snakemake):
    from safetydpo.judges.stage import copy_judge

    copy_judge(snakemake.params.kind, snakemake.params.path, snakemake.output[0])
