from pathlib import Path

from safetydpo.config import Train
from safetydpo.jobs import job, model_of

with job(snakemake):
    from safetydpo.train import train_expert

    p, out = snakemake.params, Path(snakemake.output.lora).parent
    retain = snakemake.input.get("retain") or None
    features = snakemake.input.features
    features = [features] if isinstance(features, str) else list(features)
    train_expert(
        features, retain, model_of(snakemake), Train(**p.train), steps=p.steps, seed=p.seed, name=out.name, out=out
    )
