from safetydpo.config import Judges
from safetydpo.jobs import job

with job(snakemake):
    from safetydpo.evaluate import write_scores

    i = snakemake.input
    device = snakemake.config["model"].get("device", "auto")
    write_scores(
        list(i.images), i.prompts, list(i.base), Judges(**snakemake.params.judges), device, snakemake.output[0]
    )
