from pathlib import Path

from safetydpo.config import load_config
from safetydpo.jobs import job

with job(snakemake):
    from safetydpo.report import write_report

    page = Path(snakemake.output.page)
    write_report(page.parent, load_config(snakemake.config), page)
