"""Training speed and memory: a recipe of today against ours, on the same weights and pairs, in one run.

    python benchmarks/training.py                          the demo world, batch 8, two CPU cores: a minute
    python benchmarks/training.py --model sd15             Stable Diffusion 1.5's shape, random weights, 512 px, batch 1
    python benchmarks/training.py --model sdxl --device cuda --precision bf16 --batch-size 4
    python benchmarks/training.py --model sd35 --device cuda --precision bf16 --gradient-checkpointing
    python benchmarks/training.py --model flux --layers 1 --size 256      1 of 19 double layers, 2 of 38 single ones

Variants: (a) official, a re-creation of the published step as its launchers run it: JPEGs are decoded by workers (4;
SDXL 16), the step encodes them with the VAE, encodes the prompt, and asks a second UNet for the reference; on a GPU,
SDXL's VAE, text encoders and reference lie on the CPU between uses. Nothing was published for transformers: theirs is
script, what one would write after diffusers' DreamBooth LoRA examples, where the network with adapters disabled is the
reference and each image has a forward pass of its own (4 workers, where those examples have none). (b) exact: cached
features, the reference is the same network without its adapters; (c) cached: the reference's errors are known.
floor: the plain diffusers network, frozen: forward, backward, and one more forward; short floor: the backward pass only
as far down as the first attention, which is all that adapters there need. --compile compiles (b), (c) and the floor:
their first step then takes minutes. On a GPU the passes of these are recorded once and replayed, as train.cuda_graphs
has it (--launched: not). Peak memory is of a process that runs one variant alone; --no-memory saves these. Progress is
told on stderr. --folder keeps the random model for a next run.

The script encodes what it could keep, as some of those examples can be told to keep latents. --layers cuts a
transformer and its text encoders to the same share of their layers, and the VAE stays whole: at few layers it weighs
more than in the full model, as text encoders do beside small images. All of that overstates ours.
"""

import argparse
import copy
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from random_models import LAYERS, SIZES, save_random
from random_transformers import SD35
from recipes import Official, Script
from timing import interleaved, peak_memory, print_ratios, print_table, tell

from safetydpo.config.model import Model
from safetydpo.config.training import Train
from safetydpo.features.sets import read_features
from safetydpo.features.stage import write_features
from safetydpo.models.compiling import compile_network, prepare_compiler
from safetydpo.running.devices import device_of
from safetydpo.storage.files import write_parquet
from safetydpo.storage.images import png, unpng
from safetydpo.training.denoiser import DTYPES, Denoiser
from safetydpo.training.graphs import Graphs
from safetydpo.training.samples import PAIR_ROLES, Samples, Share
from safetydpo.training.trainer import Objective, Trainer, make_accelerator

DEMO = Path(__file__).parents[1] / "resources/demo/t2i"
# The large models' cached references take long to fill, and 2 pairs cost a step as much as 16.
DEMO_PAIRS, PAIRS = 16, 2
ROOM = 60e9
RIVALS = {"official": Official, "script": Script}
OURS, FLOORS = ("exact", "cached"), ("floor", "short floor")


def rival(args: argparse.Namespace) -> str:
    """The name of what ours is compared with."""
    return "script" if args.model in LAYERS else "official"


def settings(args: argparse.Namespace, folder: Path) -> tuple[Model, Train]:
    """Model and training sections: the published rank, targets and loss."""
    size = args.size or (48 if args.model == "demo" else SIZES[args.model])
    model = Model(
        id=str(DEMO if args.model == "demo" else folder / "model"),
        height=size,
        width=size,
        num_inference_steps=1,
        guidance_scale=1.0,
        batch_size=1 if size > 512 else 4,
        device=args.device,
        dtype={"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[args.precision],
    )
    config = Train(
        steps=1000,
        batch_size=args.batch_size,
        learning_rate=1e-5,
        mixed_precision=args.precision,
        draws=2,
        gradient_checkpointing=args.gradient_checkpointing,
        compile=args.compile,
        cuda_graphs=not args.launched,
    )
    return model, config


def make_data(model: Model, folder: Path, pairs: int) -> None:
    """Pairs of smooth random images, as Parquet and as JPEGs, and their features."""
    rng, size = np.random.default_rng(0), (model.width, model.height)
    rows = [
        {"pair_id": f"p{i}", "unsafe_prompt": f"a red circle and a brulo {i}", "safe_prompt": f"a red circle {i}"}
        for i in range(pairs)
    ]
    images = [
        {"pair_id": row["pair_id"], "seed": 0}
        | {
            f"{role}_image": png(
                np.asarray(Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize(size))
            )
            for role in PAIR_ROLES
        }
        for row in rows
    ]
    write_parquet(rows, folder / "prompts.parquet")
    write_parquet(images, folder / "pairs.parquet")
    for image in images:
        for role in PAIR_ROLES:
            Image.fromarray(unpng(image[f"{role}_image"])).save(folder / f"{image['pair_id']}_{role}.jpg", quality=95)
    roles = {role: (f"{role}_image", f"{role}_prompt") for role in PAIR_ROLES}
    tell("pairs are made")
    write_features(
        [str(folder / "pairs.parquet")], folder / "prompts.parquet", roles, model, folder / "features.safetensors"
    )
    tell("and encoded")


def ours(denoiser: Denoiser, config: Train, folder: Path, reference: str) -> Callable[[], None]:
    """Our step, by the real trainer."""
    config = config.model_copy(update={"reference": reference})
    features = read_features([folder / "features.safetensors"], denoiser.model.id)
    samples = Samples(features, PAIR_ROLES, config.batch_size, config, 0, Share())
    accelerator = make_accelerator(config, denoiser.device)
    trainer = Trainer(Objective(denoiser, samples, None, config), config.steps, reference, accelerator)
    if reference == "cached":
        trainer.objective.remember(config.steps, accelerator)
    turns = iter(range(config.steps))
    return lambda: trainer.step(next(turns)) and None


def bare(denoiser: Denoiser) -> Any:
    """The network as diffusers has it, on the denoiser's own frozen weights (no copy)."""
    network = denoiser.network
    with torch.device("meta"):
        plain = type(network).from_config(network.config)
    weights = {k.replace(".base_layer.", "."): v for k, v in network.state_dict().items() if "lora_" not in k}
    plain.load_state_dict(weights, assign=True)
    return plain.requires_grad_(False).train()


def floor_of(denoiser: Denoiser, config: Train, folder: Path, short: bool) -> Callable[[], None]:
    """What no trainer of this network can do without, on inputs that are ready; `short`: see above."""
    features = read_features([folder / "features.safetensors"], denoiser.model.id)
    samples = Samples(features, PAIR_ROLES, config.batch_size, config, 0, Share())
    batch = samples.noised(denoiser, samples.pick(0))
    plain = copy.copy(denoiser)
    plain.strength, plain.graphs = None, Graphs([]) if denoiser.graphs else None
    plain.network = plain.policy = bare(denoiser)
    if config.gradient_checkpointing:
        plain.network.enable_gradient_checkpointing()
    if config.compile:
        compile_network(plain.network)
    leaf = batch.condition["encoder_hidden_states"] if short else batch.noisy_latents

    def run() -> None:
        leaf.requires_grad_(True)
        plain.predict(batch).float().square().mean().backward()
        leaf.grad = None
        leaf.requires_grad_(False)
        with torch.no_grad():
            plain.predict(batch)

    return run


def variants(names: tuple[str, ...], model: Model, config: Train, folder: Path) -> dict[str, Callable[[], None]]:
    """Steps by name; ours share one network."""
    made: dict[str, Callable[[], None]] = {}
    denoiser = None
    for name in names:
        tell(f"{name} is set up")
        if name in RIVALS:
            made[name] = RIVALS[name](model, config, folder).step
            continue
        if denoiser is None:
            if config.compile:
                prepare_compiler(model, device_of(model.device), "--compile")
            denoiser = Denoiser(model, config.mixed_precision)
            denoiser.add_adapter(config, 0)
        if name in FLOORS:
            made[name] = floor_of(denoiser, config, folder, short=name == "short floor")
        else:
            made[name] = ours(denoiser, config, folder, name)
    return made


def memory_of(name: str, folder: Path) -> float:
    """Peak GB of a process of its own that runs this variant twice."""
    tell(f"memory of {name}")
    command = [sys.executable, __file__, *sys.argv[1:], "--only", name, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["peak"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["demo", *SIZES], default="demo")
    parser.add_argument("--layers", type=int, help=f"of a transformer that is cut; whole: {LAYERS}")
    parser.add_argument("--size", type=int, help="height and width, pixels; the model's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=list(DTYPES), default="no")
    parser.add_argument("--batch-size", type=int, help="pairs a step (demo 8, others 1)")
    parser.add_argument("--repeats", type=int, help="timed steps of each variant (demo 40, others 3)")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one timed step of each")
    parser.add_argument("--compile", action="store_true", help="ours and the floor, by torch.compile")
    parser.add_argument("--launched", action="store_true", help="ours and the floor without CUDA graphs")
    parser.add_argument("--no-memory", action="store_true", help="without a process for each variant's peak memory")
    names = ["rival", *OURS, *FLOORS]
    parser.add_argument("--variants", nargs="+", choices=names, default=names, help="these alone; rival: (a)")
    parser.add_argument("--folder", type=Path, help="where model and pairs lie, or are made and kept")
    parser.add_argument("--only", choices=[*RIVALS, *OURS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.variants = tuple(rival(args) if name == "rival" else name for name in args.variants)
    least = 2 if args.model in SD35 else 1  # its last layer has not every module that gets a LoRA
    if args.layers and args.layers not in range(least, LAYERS.get(args.model, 0) + 1):
        parser.error(f"--layers cuts a transformer: 1 (sd35: 2) to as many as it has, {LAYERS}")
    if args.size and args.model == "demo":
        parser.error("--size is of the large models: the demo world's is 48")
    args.batch_size = args.batch_size or (8 if args.model == "demo" else 1)
    args.repeats = 1 if args.quick else args.repeats or (40 if args.model == "demo" else 3)
    return args


def say(args: argparse.Namespace, size: int, seconds: dict[str, float], memory: dict[str, float]) -> None:
    """Print the table, what stands behind it, and the ratios."""
    other, rows = rival(args), []
    for name, took in seconds.items():
        ratio = f"{seconds[other] / took:.2f}" if other in seconds and name not in FLOORS else ""
        gb = f"{memory[name]:.2f}" if name in memory else ""
        share = f"{memory[name] / memory[other]:.2f}" if {name, other} <= memory.keys() else ""
        rows.append([name, f"{took:.4g}", f"{args.batch_size / took:.3g}", ratio, gb, share])
    cuda = args.device.startswith("cuda")
    where = torch.cuda.get_device_name(args.device) if cuda else f"{torch.get_num_threads()} CPU threads"
    print(f"\n{args.model}, {size} px, batch {args.batch_size}, precision {args.precision}, {where}")
    if args.layers:
        print(f"cut to {args.layers} of {LAYERS[args.model]} layers, the text encoders likewise; the VAE is whole")
    how: dict[str, Any] = {"compiled": args.compile, "replayed": args.device.startswith("cuda") and not args.launched}
    if any(how.values()):
        print(f"ours and the floors are {' and '.join(key for key, on in how.items() if on)}, {other} is not")
    print_table(["variant", "s/step", "pairs/s", f"x {other}", "peak GB", f"of {other}"], rows)
    print(f"{other} is re-created (see --help)")
    print_ratios({"model": args.model, **how, **ratios(other, seconds, memory)})


def ratios(other: str, seconds: dict[str, float], memory: dict[str, float]) -> dict[str, float]:
    """Of the variants that were run."""
    found = {f"{name}_speed": (seconds, other, name) for name in OURS}
    found |= {f"exact_step_to_{floor.replace(' ', '_')}": (seconds, "exact", floor) for floor in FLOORS}
    found |= {f"{name}_memory": (memory, name, other) for name in OURS}
    return {key: of[a] / of[b] for key, (of, a, b) in found.items() if {a, b} <= of.keys()}


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Time all variants in turns, and each one's memory; print."""
    model, config = settings(args, folder)
    if args.model != "demo" and not (folder / "model/model_index.json").exists():
        save_random(args.model, folder / "model", args.layers, DTYPES[args.precision], args.device)
    make_data(model, folder, DEMO_PAIRS if args.model == "demo" else PAIRS)
    alone = () if args.no_memory else args.variants
    memory = {name: memory_of(name, folder) for name in alone if name not in FLOORS}
    warmup = 1 if args.quick or args.model != "demo" else 3
    steps = variants(args.variants, model, config, folder)
    say(args, model.height, interleaved(steps, args.repeats, warmup, torch.device(args.device)), memory)


def quick_folder() -> str | None:
    """Memory for a model of gigabytes that is written once and read a few times, where there is enough of it."""
    memory = Path("/dev/shm")
    return str(memory) if memory.exists() and shutil.disk_usage(memory).free > ROOM else None


def main() -> None:
    args = parse()
    if args.only:
        model, config = settings(args, args.folder)
        step = variants((args.only,), model, config, args.folder)[args.only]
        with peak_memory(torch.device(args.device)) as peak:
            for _ in range(2):
                step()
        print(json.dumps({"peak": peak.bytes / 1e9}))
    elif args.folder:
        args.folder.mkdir(parents=True, exist_ok=True)
        measure(args, args.folder)
    else:
        with tempfile.TemporaryDirectory(dir=quick_folder()) as folder:
            measure(args, Path(folder))


if __name__ == "__main__":
    main()
