from safetydpo.config.merging import Merge
from safetydpo.running.jobs import experts_of, features_of, importing, job, model_of

with job(snakemake):
    with importing():
        from safetydpo.merging.stage import write_covariances

    p, experts, features = snakemake.params, experts_of(snakemake), features_of(snakemake)
    retain, merge, out = snakemake.input.retain or None, Merge(**p.merge), snakemake.output[0]
    write_covariances(experts, features, retain, model_of(snakemake), merge, p.seed, out)
