from safetydpo.config.merging import Merge
from safetydpo.running.jobs import experts_of, features_of, importing, job, model_of

with job(snakemake):
    with importing():
        from safetydpo.merging.stage import write_coactivation

    p, experts, features = snakemake.params, experts_of(snakemake), features_of(snakemake)
    write_coactivation(experts, features, model_of(snakemake), Merge(**p.merge), p.seed, snakemake.output[0])
