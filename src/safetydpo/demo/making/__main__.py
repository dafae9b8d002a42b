"""The steps that make the demo worlds' models, each a command: `python -m safetydpo.demo.making STEP WORK OUT`.

workflow/demo_world.smk runs them in order (`make demo-world`), and demo_flow_world.smk those of the flow demo, which
has a denoiser of its own and all else from the first world. WORK holds what is in progress and survives a kill; OUT is
the shipped folder.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKL, ModelMixin, SD3Transformer2DModel, UNet2DConditionModel
from transformers import CLIPModel, CLIPTokenizer

from safetydpo.config.loading import load_config
from safetydpo.demo.making import clip, data, detector_training, q16, quality, transformer, unet, vae
from safetydpo.demo.making.fit import Schedule, rank_and_world
from safetydpo.demo.making.latents import encode_set, load_latents

SEED, SCENES, ENCODED = 0, 60_000, 40_000
SHIPPED = Path("resources/demo")  # what the flow demo has of the first world: VAE, tokenizer, CLIP
PLANS = {
    "clip": (Schedule(720, 1e-3, weight_decay=0.05), 256),
    "vae": (Schedule(3000, 1.2e-3, weight_decay=0.0), 8),
    "unet": (Schedule(10_000, 2e-3, weight_decay=0.0, ema=0.999), 40),
    "compose": (Schedule(7500, 8e-4, weight_decay=0.0, ema=0.999), 40),
    "transformer": (Schedule(11_200, 1.5e-3, weight_decay=0.0, ema=0.999, end=1.0), 48),
    "decay": (Schedule(3000, 1.5e-3, weight_decay=0.0, ema=0.999), 48),
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
    encode_set(scenes, autoencoder, unet.encoder_of(model.text_model, tokenizer), work / "latents.safetensors")


def _flow_latents(work: Path) -> None:
    """The same scenes as the flow demo's pipeline encodes them."""
    scenes = data.load_set(work / "scenes.safetensors")
    encode = transformer.encoder_of(_flow_pipeline(transformer.build_transformer()))
    autoencoder = AutoencoderKL.from_pretrained(SHIPPED / "t2i/vae").eval()
    encode_set(scenes, autoencoder, encode, work / "latents.safetensors")


def _flow_pipeline(model: SD3Transformer2DModel) -> Any:
    shipped = CLIPModel.from_pretrained(SHIPPED / "clip", dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(SHIPPED / "clip")
    autoencoder = AutoencoderKL.from_pretrained(SHIPPED / "t2i/vae")
    return transformer.build_pipeline(model, autoencoder, shipped, tokenizer)


def _unet(work: Path) -> None:
    """Learn to draw, all timesteps alike."""
    torch.manual_seed(SEED)
    _denoise("unet", unet.train_unet, unet.build_unet(), work)


def _compose(work: Path) -> None:
    """Then what to draw, at high noise: without it rings and crosses of one ink are mixed up more often."""
    _denoise("compose", unet.train_unet, UNet2DConditionModel.from_pretrained(work / "unet"), work, late=2.0)


def _transformer(work: Path) -> None:
    """Learn to draw at one rate, for as long as there is time."""
    torch.manual_seed(SEED)
    _denoise("transformer", transformer.train_transformer, transformer.build_transformer(), work)


def _decay(work: Path) -> None:
    """Then let the rate fall to 0: edges become sharp."""
    start = SD3Transformer2DModel.from_pretrained(work / "transformer")
    _denoise("decay", transformer.train_transformer, start, work)


def _denoise(name: str, train: Callable[..., Any], model: Any, work: Path, **options: float) -> None:
    """Train into the folder `name`; under torchrun the batch is shared by the processes."""
    plan, batch = PLANS[name]
    rank, world = rank_and_world()
    torch.set_num_threads(max(1, torch.get_num_threads() // world))
    latents = load_latents(work / "latents.safetensors")
    model = train(name, model, latents, plan, SEED, batch // world, work, **options)
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
    shutil.rmtree(out, ignore_errors=True)
    _save(pipeline, out / "t2i")
    clip.save_clip(model.half(), tokenizer, out / "clip")
    shutil.copytree(work / "detector", out / "detector")
    shutil.copy(work / "q16.safetensors", out / "q16.safetensors")


def _flow_assemble(work: Path, out: Path) -> None:
    shutil.rmtree(out, ignore_errors=True)
    _save(_flow_pipeline(SD3Transformer2DModel.from_pretrained(work / "decay")), out / "t2i")


def _save(pipeline: Any, folder: Path) -> None:
    """Half precision for what diffusers reads, which makes it float32; transformers loads what is stored."""
    for part in (p for p in pipeline.components.values() if isinstance(p, ModelMixin)):
        part.register_to_config(_name_or_path="")  # where it was built is nobody's business
    pipeline.to(torch.float16)
    for name in ("text_encoder", "text_encoder_2"):
        if hasattr(pipeline, name):
            getattr(pipeline, name).float()
    pipeline.save_pretrained(folder)


def _quality(work: Path, out: Path) -> None:
    """Measure as the default config renders and judges."""
    _write_card(out, quality.UNET_WORLD, {})


def _flow_quality(work: Path, out: Path) -> None:
    """Measure as the flow demo's config renders; the judges are the first world's."""
    _write_card(out, quality.FLOW_WORLD, yaml.safe_load(Path("config/demo-flow.yaml").read_text())["model"])


def _write_card(out: Path, world: quality.World, model: dict[str, Any]) -> None:
    values = yaml.safe_load(Path("config/config.yaml").read_text())
    config = load_config(values | {"model": values["model"] | model})
    quality.write_card(out, world, config.model, config.judges, SEED)


STEPS = {
    "draw": _draw,
    "clip": _clip,
    "vae": _vae,
    "latents": _latents,
    "unet": _unet,
    "compose": _compose,
    "detector": _detector,
    "q16": _q16,
    "flow_latents": _flow_latents,
    "transformer": _transformer,
    "decay": _decay,
}
SHIPPING = {
    "assemble": _assemble,
    "quality": _quality,
    "flow_assemble": _flow_assemble,
    "flow_quality": _flow_quality,
}


def main() -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=[*STEPS, *SHIPPING])
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--threads", type=int, default=0, help="threads of torch; 0: all cores")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.step in SHIPPING:
        SHIPPING[args.step](args.work, args.out)
    else:
        STEPS[args.step](args.work)


if __name__ == "__main__":
    main()
