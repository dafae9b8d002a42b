# What is said of a cluster in our own words: before the first job, and after a failure. Jobs themselves run no hooks.
from safetydpo.running.cluster import advice, refuse_without_slurm


onstart:
    if workflow.executor_plugin.name == "slurm":
        try:
            refuse_without_slurm()
        except SafetyDPOError as error:
            sys.exit(str(error))


onerror:
    said = "".join(open(path, encoding="utf-8", errors="replace").read() for path in log)
    for sentence in advice(said):
        print(f"\n{sentence}", file=sys.stderr)
