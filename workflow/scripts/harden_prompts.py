from safetydpo.config.attacks import Harden
from safetydpo.running.jobs import importing, job

with job(snakemake):
    with importing():
        from safetydpo.attacks.stage import write_attacked

    p, number = snakemake.params, int(snakemake.wildcards.round)
    write_attacked(list(snakemake.input.pairs), Harden(**p.harden), number, p.seed, snakemake.output[0])
