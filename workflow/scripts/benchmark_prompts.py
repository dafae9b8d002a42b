from safetydpo.config import Benchmark
from safetydpo.jobs import job

with job(snakemake):
    from safetydpo.benchmarks import write_benchmark

    p = snakemake.params
    write_benchmark(Benchmark(**p.benchmark), p.n, p.categories, p.seed, snakemake.output[0], snakemake.input.pairs)
