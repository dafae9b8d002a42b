from pathlib import Path

from safetydpo.config.merging import Merge
from safetydpo.running.jobs import job, model_of

with job(snakemake):
    from safetydpo.merging.stage import write_covariances_of

    i, p, names = snakemake.input, snakemake.params, snakemake.params.categories
    folders = dict(zip(names, (Path(lora).parent for lora in i.experts), strict=True))
    shards = len(i.features) // len(names)
    features = {c: list(i.features[k * shards : (k + 1) * shards]) for k, c in enumerate(names)}
    retain, merge, out = i.retain or None, Merge(**p.merge), snakemake.output[0]
    write_covariances_of(folders, features, retain, model_of(snakemake), merge, p.seed, out)
