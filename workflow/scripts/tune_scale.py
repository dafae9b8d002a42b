from pathlib import Path

from safetydpo.config import Judges, Tune
from safetydpo.jobs import job, model_of

with job(snakemake):
    from safetydpo.tune import tune

    i, o, p = snakemake.input, snakemake.output, snakemake.params
    tune(i.prompts, Path(i.lora).parent, model_of(snakemake), Judges(**p.judges), Tune(**p.tune), o.curve, o.scale)
