import yaml

from safetydpo.files import write_text
from safetydpo.jobs import job

with job(snakemake):
    write_text(yaml.safe_dump(snakemake.params.config, sort_keys=False), snakemake.output[0])
