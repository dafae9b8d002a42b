from safetydpo.config.attacks import Harden
from safetydpo.running.jobs import importing, job, judges_of, model_of

with job(snakemake) as say:
    with importing():
        from safetydpo.attacks.stage import write_hardening_pairs

    i, p, number = snakemake.input, snakemake.params, snakemake.wildcards.round
    settings = {"answers": p.answers, "seed": p.seed, "outs": dict(zip(p.categories, snakemake.output, strict=True))}
    found = dict(zip(p.attacks, i.found, strict=True))
    counts = write_hardening_pairs(
        found, list(i.known), Harden(**p.harden), model_of(snakemake), judges_of(snakemake), **settings
    )
    say(f"round {number}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
