from pathlib import Path

from safetydpo.config.merging import Merge
from safetydpo.running.jobs import job, model_of

with job(snakemake):
    from safetydpo.merging.stage import merge_experts

    i, p, out = snakemake.input, snakemake.params, Path(snakemake.output.lora).parent
    folders = dict(zip(p.categories, (Path(lora).parent for lora in i.experts), strict=True))
    statistics = i.get("statistics") or None
    merge_experts(out.name, folders, statistics, model_of(snakemake), Merge(**p.merge), p.seed, out)
