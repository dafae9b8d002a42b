from pathlib import Path

from safetydpo.config.loading import load_config
from safetydpo.running.jobs import importing, job

with job(snakemake) as say:
    with importing():
        from safetydpo.export.stage import export

    config, names, p = load_config(snakemake.config), snakemake.wildcards, snakemake.params
    out = Path(snakemake.output[0])
    say(export(config, Path(config.folder), names.method, names.format, out, p.rank, p.dtype))
