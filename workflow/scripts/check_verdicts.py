from safetydpo.config.judges import Verdict
from safetydpo.running.jobs import importing, job

with job(snakemake):
    with importing():
        from safetydpo.judges.stage import check_verdicts

    verdicts = [Verdict(**verdict) for verdict in snakemake.params.verdicts]
    check_verdicts(verdicts, snakemake.input[0], snakemake.output[0])
