# Trains the flow demo's model from scratch, on what resources/demo has: snakemake --snakefile
# workflow/demo_flow_world.smk --cores 2 (make demo-flow-world). Hours on two cores. Every training step resumes
# from its checkpoint in build/demo-flow after a kill.
WORK = "build/demo-flow"
OUT = "resources/demo-flow"
STEP = f"-m safetydpo.demo.making {{rule}} {WORK} {OUT}"
BUILD = f"python {STEP}"
TWO_PROCESSES = f"OMP_NUM_THREADS=1 python -m torch.distributed.run --standalone --nproc-per-node 2 {STEP}"


localrules:
    all,


rule all:
    input:
        f"{WORK}/quality.done",


rule draw:
    output:
        f"{WORK}/scenes.safetensors",
    threads: 2
    shell:
        BUILD


rule flow_latents:
    input:
        f"{WORK}/scenes.safetensors",
    output:
        f"{WORK}/latents.safetensors",
    shell:
        f"{BUILD} --threads 1"


rule transformer:
    input:
        f"{WORK}/latents.safetensors",
    output:
        directory(f"{WORK}/transformer"),
    threads: 2
    shell:
        TWO_PROCESSES


use rule transformer as decay with:
    input:
        f"{WORK}/transformer",
        f"{WORK}/latents.safetensors",
    output:
        directory(f"{WORK}/decay"),


rule flow_assemble:
    input:
        f"{WORK}/decay",
    output:
        touch(f"{WORK}/assemble.done"),
    shell:
        BUILD


rule flow_quality:
    input:
        f"{WORK}/assemble.done",
    output:
        touch(f"{WORK}/quality.done"),
    threads: 2
    shell:
        BUILD
