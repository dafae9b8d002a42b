from safetydpo.config import load_config
from safetydpo.jobs import job

with job(snakemake):
    from safetydpo.report import write_report

    write_report(snakemake.params.run, load_config(snakemake.config), snakemake.output.page)
