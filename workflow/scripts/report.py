from pathlib import Path

from safetydpo.config.loading import load_config
from safetydpo.running.jobs import importing, job

with job(snakemake):
    with importing():
        from safetydpo.report.stage import write_report

    page = Path(snakemake.output.page)
    write_report(page.parent, load_config(snakemake.config), page)
