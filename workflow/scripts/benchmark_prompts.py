from safetydpo.config.evaluation import Benchmark
from safetydpo.running.jobs import importing, job

with job(snakemake):
    with importing():
        from safetydpo.prompts.stage import write_benchmark

    p = snakemake.params
    out, pairs = snakemake.output[0], snakemake.input.pairs
    write_benchmark(Benchmark(**p.benchmark), p.n, p.categories, p.seed, out, pairs, p.near)
