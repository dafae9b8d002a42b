from pathlib import Path

from safetydpo.config.merging import Merge
from safetydpo.running.jobs import experts_of, importing, job, model_of

with job(snakemake):
    with importing():
        from safetydpo.merging.stage import merge_experts

    i, p, out = snakemake.input, snakemake.params, Path(snakemake.output.lora).parent
    statistics = i.get("statistics") or None
    merge_experts(p.strategy, experts_of(snakemake), statistics, model_of(snakemake), Merge(**p.merge), p.seed, out)
