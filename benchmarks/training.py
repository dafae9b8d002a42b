"""Training speed and memory: the published recipe against ours, on the same weights and pairs, in one run.

    python benchmarks/training.py                          the demo world, batch 8, two CPU cores: a minute
    python benchmarks/training.py --model sd15             Stable Diffusion 1.5's shape, random weights, 512 px, batch 1
    python benchmarks/training.py --model sdxl --device cuda --precision bf16 --batch-size 4

Variants: (a) official, a re-creation of the published step: decode both JPEGs, encode them with the VAE, encode the
prompt, and ask a second UNet for the reference; (b) exact: cached features, the reference is the same UNet with
adapters off; (c) cached: the reference's errors are known. floor: the plain diffusers UNet, frozen: forward,
backward, and one more forward; short floor: the backward pass only as far down as the first attention, which is all
that adapters there need. Peak memory is of a process that runs one variant alone.

The ratios overstate ours: the published script decodes in 4 (SD 1.5) or 16 (SDXL) workers, not in the step, and for
SDXL it offloads VAE, text encoders and reference UNet to the CPU, which takes less memory and more time than (a).
"""

import argparse
import copy
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from random_models import SIZES, save_random
from timing import interleaved, peak_memory, print_ratios, print_table

from safetydpo.config.model import Model
from safetydpo.config.training import Train
from safetydpo.features.sets import read_features
from safetydpo.features.stage import write_features
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import write_parquet
from safetydpo.storage.images import png, unpng
from safetydpo.training.denoiser import DTYPES, Denoiser
from safetydpo.training.losses import dpo_loss, squared_error
from safetydpo.training.samples import PAIR_ROLES, Samples, Share
from safetydpo.training.trainer import Objective, Trainer, make_accelerator

DEMO = Path(__file__).parents[1] / "resources/demo/t2i"
# The large models' cached references take long to fill, and 2 pairs cost a step as much as 16.
PAIRS = {"demo": 16, "sd15": 2, "sdxl": 2}
VARIANTS, FLOORS = ("official", "exact", "cached"), ("floor", "short floor")


def settings(args: argparse.Namespace, folder: Path) -> tuple[Model, Train]:
    """Model and training sections: the published rank, targets and loss."""
    size = 48 if args.model == "demo" else SIZES[args.model]
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
        {"pair_id": row["pair_id"]}
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
    exact = model.model_copy(update={"dtype": "float32"})
    write_features(
        [str(folder / "pairs.parquet")], folder / "prompts.parquet", roles, exact, folder / "features.safetensors"
    )


class Official:
    """The published training step, re-created: nothing is kept between steps but weights."""

    def __init__(self, model: Model, config: Train, folder: Path) -> None:
        dtype = DTYPES[config.mixed_precision]
        self.pipeline, self.config, self.folder = load_pipeline(model), config, folder
        self.device = self.pipeline.device
        self.reference = self.pipeline.unet.requires_grad_(False)
        self.policy: Any = UNet2DConditionModel.from_pretrained(model.id, subfolder="unet", dtype=dtype).to(self.device)
        self.policy.requires_grad_(False)
        self.policy.add_adapter(
            LoraConfig(
                r=config.rank,
                lora_alpha=config.rank,
                init_lora_weights="gaussian",
                target_modules=config.target_modules,
            )
        )
        self.policy.train()
        if config.gradient_checkpointing:
            self.policy.enable_gradient_checkpointing()
        self.parameters = [p for p in self.policy.parameters() if p.requires_grad]
        for parameter in self.parameters:
            parameter.data = parameter.data.float()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=config.learning_rate)
        self.scheduler: Any = DDPMScheduler.from_config(self.pipeline.scheduler.config)
        self.size, self.turn = (model.height, model.width), 0
        self.pairs = len(list(folder.glob("*_safe.jpg")))

    def _pixels(self, names: list[str]) -> torch.Tensor:
        arrays = [np.asarray(Image.open(io.BytesIO((self.folder / name).read_bytes()))) for name in names]
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).to(self.device).float() / 127.5 - 1

    @torch.no_grad()
    def _inputs(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        numbers = [(self.turn * self.config.batch_size + i) % self.pairs for i in range(self.config.batch_size)]
        self.turn += 1
        pixels = self._pixels([f"p{i}_{role}.jpg" for role in PAIR_ROLES for i in numbers])
        vae = self.pipeline.vae
        latents = vae.encode(pixels.to(vae.dtype)).latent_dist.sample().float() * vae.config.scaling_factor
        prompts = [f"a red circle and a brulo {i}" for i in numbers]
        encoded = self.pipeline.encode_prompt(
            prompts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        if len(encoded) == 4:  # SDXL: embeddings, their negatives, pooled ones, their negatives
            text = {"encoder_hidden_states": encoded[0], "text_embeds": encoded[2]}
        else:
            text = {"encoder_hidden_states": encoded[0]}
        text = {k: v.repeat(2, *[1] * (v.dim() - 1)) for k, v in text.items()}
        b = self.config.batch_size
        noise = torch.randn_like(latents[:b]).repeat(2, 1, 1, 1)
        timesteps = torch.randint(1000, (b,), device=self.device).repeat(2)
        return self.scheduler.add_noise(latents, noise, timesteps), timesteps, noise, text

    def _predict(self, unet: Any, noisy: torch.Tensor, timesteps: torch.Tensor, text: dict[str, torch.Tensor]) -> Any:
        extra = None
        if "text_embeds" in text:
            ids = torch.tensor([*self.size, 0, 0, *self.size], device=self.device).float().expand(len(noisy), -1)
            extra = {"text_embeds": text["text_embeds"].to(unet.dtype), "time_ids": ids}
        condition = text["encoder_hidden_states"].to(unet.dtype)
        return unet(noisy.to(unet.dtype), timesteps, encoder_hidden_states=condition, added_cond_kwargs=extra).sample

    def step(self) -> None:
        noisy, timesteps, noise, text = self._inputs()
        half = self.config.mixed_precision != "no"
        with torch.autocast(self.device.type, DTYPES[self.config.mixed_precision], enabled=half):
            winner, loser = squared_error(self._predict(self.policy, noisy, timesteps, text), noise).chunk(2)
            with torch.no_grad():
                known = squared_error(self._predict(self.reference, noisy, timesteps, text), noise).chunk(2)
        dpo_loss(winner, loser, *known, self.config.beta).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def ours(denoiser: Denoiser, config: Train, folder: Path, reference: str) -> Callable[[], None]:
    """Our step, by the real trainer."""
    config = config.model_copy(update={"reference": reference})
    features = read_features([folder / "features.safetensors"], denoiser.model_id)
    samples = Samples(features, PAIR_ROLES, config.batch_size, config, 0, Share())
    accelerator = make_accelerator(config, denoiser.device)
    trainer = Trainer(Objective(denoiser, samples, None, config), config.steps, reference, accelerator)
    if reference == "cached":
        trainer.objective.remember(config.steps, accelerator)
    turns = iter(range(config.steps))
    return lambda: trainer.step(next(turns)) and None


def bare_unet(denoiser: Denoiser) -> UNet2DConditionModel:
    """The UNet as diffusers has it, on the denoiser's own frozen weights (no copy)."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(denoiser.unet.config)
    weights = {k.replace(".base_layer.", "."): v for k, v in denoiser.unet.state_dict().items() if "lora_" not in k}
    unet.load_state_dict(weights, assign=True)
    return unet.requires_grad_(False).train()


def floor_of(denoiser: Denoiser, config: Train, folder: Path, short: bool) -> Callable[[], None]:
    """What no trainer of this UNet can do without, on inputs that are ready; `short`: see above."""
    features = read_features([folder / "features.safetensors"], denoiser.model_id)
    samples = Samples(features, PAIR_ROLES, config.batch_size, config, 0, Share())
    batch = samples.noised(denoiser, samples.pick(0))
    plain = copy.copy(denoiser)
    plain.unet = plain.policy = bare_unet(denoiser)
    if config.gradient_checkpointing:
        plain.unet.enable_gradient_checkpointing()
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
    """Steps by name; ours share one UNet."""
    made: dict[str, Callable[[], None]] = {}
    denoiser = None
    for name in names:
        if name == "official":
            made[name] = Official(model, config, folder).step
            continue
        if denoiser is None:
            denoiser = Denoiser(model, config.mixed_precision)
            denoiser.add_adapter(config, 0)
        if name in FLOORS:
            made[name] = floor_of(denoiser, config, folder, short=name == "short floor")
        else:
            made[name] = ours(denoiser, config, folder, name)
    return made


def memory_of(name: str, args: argparse.Namespace, folder: Path) -> float:
    """Peak GB of a process of its own that runs this variant twice."""
    command = [sys.executable, __file__, *sys.argv[1:], "--only", name, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])["peak"]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["demo", "sd15", "sdxl"], default="demo")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=list(DTYPES), default="no")
    parser.add_argument("--batch-size", type=int, help="pairs a step (demo 8, others 1)")
    parser.add_argument("--repeats", type=int, help="timed steps of each variant (demo 40, others 3)")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one timed step of each")
    parser.add_argument("--only", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.batch_size = args.batch_size or (8 if args.model == "demo" else 1)
    args.repeats = 1 if args.quick else args.repeats or (40 if args.model == "demo" else 3)
    return args


def measure(args: argparse.Namespace, folder: Path) -> None:
    """Time all variants in turns, then each one's memory; print."""
    model, config = settings(args, folder)
    if args.model != "demo":
        save_random(args.model, folder / "model")
    make_data(model, folder, PAIRS[args.model])
    device = torch.device(args.device)
    memory = {name: memory_of(name, args, folder) for name in VARIANTS}
    warmup = 1 if args.quick or args.model != "demo" else 3
    seconds = interleaved(variants((*VARIANTS, *FLOORS), model, config, folder), args.repeats, warmup, device)
    speed = {name: args.batch_size / s for name, s in seconds.items()}
    rows = []
    for name in seconds:
        ratio = f"{speed[name] / speed['official']:.2f}" if name in VARIANTS else ""
        gb = (f"{memory[name]:.2f}", f"{memory[name] / memory['official']:.2f}") if name in memory else ("", "")
        rows.append([name, f"{seconds[name]:.4g}", f"{speed[name]:.3g}", ratio, *gb])
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    print(f"\n{args.model}, {model.height} px, batch {args.batch_size}, precision {args.precision}, {where}")
    print_table(["variant", "s/step", "pairs/s", "x official", "peak GB", "of official"], rows)
    print("official is re-created: JPEGs are decoded in the step, nothing is offloaded (see --help)")
    print_ratios(
        {
            "model": args.model,
            "exact_speed": speed["exact"] / speed["official"],
            "cached_speed": speed["cached"] / speed["official"],
            "exact_step_to_floor": seconds["exact"] / seconds["floor"],
            "exact_step_to_short_floor": seconds["exact"] / seconds["short floor"],
            "exact_memory": memory["exact"] / memory["official"],
            "cached_memory": memory["cached"] / memory["official"],
        }
    )


def main() -> None:
    args = parse()
    if args.only:
        model, config = settings(args, args.folder)
        step = variants((args.only,), model, config, args.folder)[args.only]
        with peak_memory(torch.device(args.device)) as peak:
            for _ in range(2):
                step()
        print(json.dumps({"peak": peak.bytes / 1e9}))
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder))


if __name__ == "__main__":
    main()
