import yaml

from safetydpo.running.jobs import job
from safetydpo.storage.files import write_text

with job(snakemake):
    write_text(yaml.safe_dump(snakemake.params.config, sort_keys=False), snakemake.output[0])
