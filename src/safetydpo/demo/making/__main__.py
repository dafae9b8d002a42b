"""The steps that make the demo world's models, each a command: `python -m safetydpo.demo.making STEP WORK OUT`.

workflow/demo_world.smk runs them in order (`make demo-world`). WORK holds what is in progress and survives a kill;
OUT is the shipped folder (resources/demo).
"""

import argparse
import shutil
from pathlib import Path

import torch
import yaml
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPModel, CLIPTokenizer

from safetydpo.config.loading import load_config
from safetydpo.demo.making import clip, data, detector_training, q16, quality, unet, vae
from safetydpo.demo.making.fit import Schedule, rank_and_world

SEED, SCENES, ENCODED = 0, 60_000, 40_000
PLANS = {
    "clip": (Schedule(720, 1e-3, weight_decay=0.05), 256),
    "vae": (Schedule(3000, 1.2e-3, weight_decay=0.0), 8),
    "unet": (Schedule(10_000, 2e-3, weight_decay=0.0, ema=0.999), 40),
    "compose": (Schedule(7500, 8e-4, weight_decay=0.0, ema=0.999), 40),
    "detector": (Schedule(1200, 2e-3), 64),
    "q16": (Schedule(300, 1e-3), 128),
}


def _draw(work: Path) -> None:
    data.save_set(data.draw_set(SCENES, SEED), work / "scenes.safetensors")


def _clip(work: Path) -> None:
    plan, batch = PLANS["clip"]
    scenes = data.load_set(work / "scenes.safetensors")
    model, tokenizer = clip.train_clip(scenes, plan, SEED, batch, work)
    print(f"CLIP: top-1 of 512 scenes {clip.retrieval_accuracy(model, tokenizer, scenes):.3f}")
    clip.save_clip(model, tokenizer, work / "clip")


def _vae(work: Path) -> None:
    plan, batch = PLANS["vae"]
    scenes = data.load_set(work / "scenes.safetensors")
    model = vae.train_vae(scenes, plan, SEED, batch, work)
    vae.whiten(model, scenes)
    print(f"VAE: {vae.psnr(model, scenes):.1f} dB")
    model.save_pretrained(work / "vae")


def _latents(work: Path) -> None:
    scenes = data.load_set(work / "scenes.safetensors").head(ENCODED)
    model, tokenizer = CLIPModel.from_pretrained(work / "clip").eval(), CLIPTokenizer.from_pretrained(work / "clip")
    autoencoder = AutoencoderKL.from_pretrained(work / "vae").eval()
    unet.encode_set(scenes, autoencoder, model.text_model, tokenizer, work / "latents.safetensors")


def _unet(work: Path) -> None:
    """Learn to draw, all timesteps alike."""
    torch.manual_seed(SEED)
    _denoise("unet", unet.build_unet(), work, late=0.0)


def _compose(work: Path) -> None:
    """Then what to draw, at high noise: without it rings and crosses of one ink are mixed up more often."""
    _denoise("compose", UNet2DConditionModel.from_pretrained(work / "unet"), work, late=2.0)


def _denoise(name: str, model: UNet2DConditionModel, work: Path, late: float) -> None:
    """Train into the folder `name`; under torchrun the batch is shared by the processes."""
    plan, batch = PLANS[name]
    rank, world = rank_and_world()
    torch.set_num_threads(max(1, torch.get_num_threads() // world))
    latents = unet.load_latents(work / "latents.safetensors")
    model = unet.train_unet(name, model, latents, plan, SEED, batch // world, work, late)
    if rank == 0:
        model.save_pretrained(work / name)


def _detector(work: Path) -> None:
    plan, batch = PLANS["detector"]
    autoencoder = AutoencoderKL.from_pretrained(work / "vae").eval()
    model = detector_training.train_detector(autoencoder, plan, SEED, batch, pool=16_000, work=work)
    print("detector:", detector_training.detector_accuracy(model, 1000, SEED + 1))
    model.save(work / "detector")


def _q16(work: Path) -> None:
    plan, batch = PLANS["q16"]
    scenes = data.load_set(work / "scenes.safetensors")
    autoencoder = AutoencoderKL.from_pretrained(work / "vae").eval()
    model, tokenizer = CLIPModel.from_pretrained(work / "clip"), CLIPTokenizer.from_pretrained(work / "clip")
    q16.train_q16(model, tokenizer, autoencoder, scenes, plan, SEED, batch, work)


def _assemble(work: Path, out: Path) -> None:
    """Half-precision copies into OUT: a diffusers pipeline, a CLIP folder, judges."""
    model, tokenizer = CLIPModel.from_pretrained(work / "clip-tuned"), CLIPTokenizer.from_pretrained(work / "clip")
    pipeline = unet.build_pipeline(
        UNet2DConditionModel.from_pretrained(work / "compose"),
        AutoencoderKL.from_pretrained(work / "vae"),
        unet.text_encoder_of(model),
        tokenizer,
    )
    for part in (pipeline.unet, pipeline.vae):
        part.register_to_config(_name_or_path="")  # where it was built is nobody's business
    shutil.rmtree(out, ignore_errors=True)
    pipeline.to(torch.float16)
    # transformers loads what is stored, diffusers float32: so a plain from_pretrained gives one precision
    pipeline.text_encoder.float()
    pipeline.save_pretrained(out / "t2i")
    clip.save_clip(model.half(), tokenizer, out / "clip")
    shutil.copytree(work / "detector", out / "detector")
    shutil.copy(work / "q16.safetensors", out / "q16.safetensors")


def _quality(out: Path) -> None:
    """Measure as the default config renders and judges."""
    config = load_config(yaml.safe_load(Path("config/config.yaml").read_text()))
    quality.write_card(out, config.model, config.judges, SEED)


STEPS = {
    "draw": _draw,
    "clip": _clip,
    "vae": _vae,
    "latents": _latents,
    "unet": _unet,
    "compose": _compose,
    "detector": _detector,
    "q16": _q16,
}


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=[*STEPS, "assemble", "quality"])
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0: all cores")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.step == "assemble":
        _assemble(args.work, args.out)
    elif args.step == "quality":
        _quality(args.out)
    else:
        STEPS[args.step](args.work)


if __name__ == "__main__":
    main()
