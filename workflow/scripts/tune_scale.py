from pathlib import Path

from safetydpo.config.evaluation import Tune
from safetydpo.running.jobs import importing, job, judges_of, model_of

with job(snakemake):
    with importing():
        from safetydpo.evaluation.stage import tune_scale

    i, o, p = snakemake.input, snakemake.output, snakemake.params
    judges = p.judges and judges_of(snakemake)
    tune_scale(i.prompts, Path(i.lora).parent, model_of(snakemake), judges, Tune(**p.tune), o.curve, o.scale, p.answers)
