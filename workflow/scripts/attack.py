from safetydpo.config.baselines import Baselines
from safetydpo.running.jobs import attacks_of, importing, job, judges_of, model_of, scale_of

with job(snakemake):
    with importing():
        from safetydpo.attacks.stage import write_attack

    i, p, w, model = snakemake.input, snakemake.params, snakemake.wildcards, model_of(snakemake)
    write_attack(
        w.attack,
        w.method,
        attacks_of(snakemake),
        model,
        Baselines(**p.baselines),
        judges_of(snakemake),
        prompts=i.prompts,
        pairs=list(i.pairs),
        images=list(i.images),
        answers=p.answers,
        weights=i.get("weights"),
        scale=scale_of(snakemake),
        seed=p.seed,
        journal=p.journal,
        out=snakemake.output[0],
    )
