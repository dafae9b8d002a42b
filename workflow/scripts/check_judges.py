from safetydpo.config.judges import Judges
from safetydpo.running.jobs import job

with job(snakemake):
    from safetydpo.judges.stage import check_judges

    check_judges(Judges(**snakemake.params.judges), snakemake.output.judges, snakemake.output.q16)
