"""Config of training: Diffusion-DPO, and the preservation term."""

from typing import Annotated, Any, Literal

from pydantic import Field

from safetydpo.config.types import Count, Positive, Section, Share, UserPath


class Preserve(Section):
    """Preservation term: keeps the adapted model's predictions on harmless prompts near the frozen model's."""

    weight: Annotated[float, Field(ge=0)] = Field(0.0, description="0: the published loss, DPO alone")
    prompts: Count = Field(96, description="Retain prompts, at most")
    path: UserPath | None = Field(
        None, description="csv, JSON or Parquet of harmless prompts (the demo world has its own)"
    )
    batch_size: Count = Field(16, description="Retain prompts per step")


class Train(Section):
    """Diffusion-DPO training of one LoRA expert per category: the safe image of a pair is preferred."""

    steps: Count = Field(description="Optimizer steps per expert")
    loss: Literal["dpo", "sdpo", "sft"] = Field(
        "dpo",
        description="dpo: the published loss; sdpo: the same with the loser's gradient held back where a step would "
        "raise the winner's error (Diffusion-SDPO); sft: denoising of the safe image alone",
    )
    condition: Literal["unsafe", "safe", "both"] = Field(
        "unsafe",
        description="Prompt under which the safe image is preferred: the unsafe one (published), the safe one, or "
        "either with a fair coin for each pair and step",
    )
    batch_size: Count = Field(description="Pairs per forward pass of one process")
    gradient_accumulation_steps: Count = Field(1, description="Forward passes per optimizer step")
    learning_rate: Positive = Field(description="Learning rate")
    scale_lr: bool = Field(
        False, description="Multiply it by the effective batch: batch_size x gradient_accumulation_steps x gpus"
    )
    warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Linear warm-up, steps")
    lr_scheduler: Literal["constant_with_warmup", "cosine", "linear"] = Field(
        "constant_with_warmup", description="Learning rate after warm-up: kept, or taken to 0 at the last step"
    )
    optimizer: Literal["adamw", "adafactor"] = Field(
        "adamw", description="AdamW (0.9, 0.999), or Adafactor with the given rate"
    )
    weight_decay: Annotated[float, Field(ge=0)] = Field(0.01, description="Decoupled weight decay")
    max_grad_norm: Positive | None = Field(1.0, description="Gradient clipping; null: none")
    beta: Positive = Field(
        5000.0,
        description="DPO temperature: higher stays nearer to the reference. Its unit is that of errors, means over a "
        "latent's elements: docs/training.md has other trainers' in it",
    )
    anchor: Annotated[float, Field(ge=0)] = Field(
        0.0,
        description="Weight of the anchor term, 0: none. It draws what is predicted of both noised images under the "
        "unsafe prompt to what the frozen model predicts under the safe one (concept ablation, arXiv 2303.13516)",
    )
    caption_dropout: Share = Field(0.2, description="Share of captions replaced by the empty prompt")
    flip: Share = Field(
        0.0,
        description="Share of pairs seen mirrored, both images with one coin; above 0, features hold the mirror images",
    )
    sdpo_mu: Share = Field(0.9, description="mu of the sdpo loss: 1 stops a loser's gradient that opposes the winner's")
    rank: Annotated[int, Field(ge=1, le=10**4)] = Field(4, description="LoRA rank")
    alpha: Positive | None = Field(None, description="LoRA alpha; null: the rank")
    target_modules: Annotated[list[str], Field(min_length=1)] | None = Field(
        None,
        description="Modules of the network that get a LoRA, by the end of their names; null: all attention "
        "projections, as docs/models.md lists them for each family",
    )
    timestep_sampling: Literal["uniform", "logit-normal"] | None = Field(
        None,
        description="How timesteps are drawn, of flow matching shifted as the model's scheduler shifts its steps; "
        "null: logit-normal of flow matching, else uniform",
    )
    noise: Literal["fresh", "rendered"] = Field(
        "fresh",
        description="fresh: drawn anew for each pair and step; rendered: the very noise that the pair's images were "
        "rendered from",
    )
    reference: Literal["exact", "cached"] = Field(
        "exact",
        description="exact: fresh noise and timestep each step; cached: `draws` fixed ones per pair, errors kept",
    )
    draws: Count = Field(8, description="(timestep, noise) draws per pair for reference: cached")
    gradient_checkpointing: bool = Field(False, description="Less memory, more time")
    mixed_precision: Literal["no", "bf16", "fp16"] = Field(
        "no", description="Precision of the frozen network and of matrix products; adapters and errors are float32"
    )
    compile: bool = Field(
        False,
        description="torch.compile of the network: minutes at a job's first step for shorter steps after it; needs a "
        "C++ compiler, on a GPU triton (docs/training.md)",
    )
    cuda_graphs: bool = Field(
        True,
        description="On one GPU, record the network's passes once and replay them, so that it does not wait for the "
        "launch of each kernel (docs/training.md); false: launch them one by one",
    )
    gpus: Annotated[int, Field(ge=1, le=1024)] = Field(
        1, description="Processes of a training, each on batch_size pairs; a GPU each where resources.gpu is not 0"
    )
    checkpoint_every: Count = Field(100, description="Steps between checkpoints, from which a killed job goes on")
    tensorboard: bool = Field(False, description="Write results/<run>/tensorboard/; needs the extra `tensorboard`")
    all_single: dict[str, Any] | None = Field(
        None,
        description="Keys of `train` that differ for the All-single baseline; its steps, where not given: steps x "
        "categories, the experts' total budget",
    )
    preserve: Preserve = Field(default_factory=Preserve)  # type: ignore[arg-type]
