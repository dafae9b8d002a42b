from pathlib import Path

from safetydpo.running.jobs import importing, job, model_of, train_of

with job(snakemake):
    with importing():
        from safetydpo.training.stage import train_expert

    p, out = snakemake.params, Path(snakemake.output.lora).parent
    retain = snakemake.input.get("retain") or None
    features = snakemake.input.features
    features = [features] if isinstance(features, str) else list(features)
    where = {"name": out.name, "out": out, "checkpoints": p.checkpoints, "pairs": p.get("pairs")}
    train_expert(features, retain, model_of(snakemake), train_of(snakemake), steps=p.steps, seed=p.seed, **where)
