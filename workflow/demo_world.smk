# Trains the demo world's models from scratch: snakemake --snakefile workflow/demo_world.smk --cores 2 (make demo-world).
# About two hours on two cores. Every training step resumes from its checkpoint in build/demo-world after a kill.
WORK = "build/demo-world"
OUT = "resources/demo"
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


rule clip:
    input:
        f"{WORK}/scenes.safetensors",
    output:
        directory(f"{WORK}/clip"),
    shell:
        f"{BUILD} --threads 1"


rule vae:
    input:
        f"{WORK}/scenes.safetensors",
    output:
        directory(f"{WORK}/vae"),
    shell:
        f"{BUILD} --threads 1"


rule latents:
    input:
        f"{WORK}/clip",
        f"{WORK}/vae",
        f"{WORK}/scenes.safetensors",
    output:
        f"{WORK}/latents.safetensors",
    shell:
        f"{BUILD} --threads 1"


rule unet:
    input:
        f"{WORK}/latents.safetensors",
    output:
        directory(f"{WORK}/unet"),
    threads: 2
    shell:
        TWO_PROCESSES


use rule unet as compose with:
    input:
        f"{WORK}/unet",
        f"{WORK}/latents.safetensors",
    output:
        directory(f"{WORK}/compose"),


rule detector:
    input:
        f"{WORK}/vae",
    output:
        directory(f"{WORK}/detector"),
    shell:
        f"{BUILD} --threads 1"


rule q16:
    input:
        f"{WORK}/vae",
        f"{WORK}/clip",
        f"{WORK}/scenes.safetensors",
    output:
        f"{WORK}/q16.safetensors",
    shell:
        f"{BUILD} --threads 1"


rule assemble:
    input:
        f"{WORK}/compose",
        f"{WORK}/detector",
        f"{WORK}/q16.safetensors",
    output:
        touch(f"{WORK}/assemble.done"),
    shell:
        BUILD


rule quality:
    input:
        f"{WORK}/assemble.done",
    output:
        touch(f"{WORK}/quality.done"),
    threads: 2
    shell:
        BUILD
