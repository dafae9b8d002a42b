from safetydpo.config import Judges
from safetydpo.jobs import job

with job(snakemake):
    from safetydpo.judges import check_judges

    check_judges(Judges(**snakemake.params.judges), snakemake.output.judges, snakemake.output.q16)
