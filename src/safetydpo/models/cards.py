"""Model cards that lie beside the LoRA files."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
import yaml

from safetydpo.config.model import Model
from safetydpo.config.training import Train
from safetydpo.models.families.registry import Kind
from safetydpo.models.index import Index

# The name of a loss, of a model that predicts noise and of flow matching.
LOSSES = {
    "dpo": ("Diffusion-DPO", "Flow-DPO (Diffusion-DPO's loss on velocities)"),
    "sdpo": ("Diffusion-SDPO", "Diffusion-SDPO's loss on velocities"),
    "sft": ("supervised fine-tuning", "supervised fine-tuning"),
}
SAMPLING = {"uniform": "drawn uniformly", "logit-normal": "the sigmoid of a normal draw"}
NOISE = {"fresh": "noise drawn anew", "rendered": "the noise that a pair's images were rendered from"}
LOAD = """```python
from diffusers import AutoPipelineForText2Image

pipe = AutoPipelineForText2Image.from_pretrained({model}{missing})
pipe.load_lora_weights("this folder")
image = pipe("a prompt", {call}).images[0]  # as the run renders
```
"""


class Aligned(NamedTuple):
    """The model that a LoRA is for, its family, parts that diffusers must be told are missing, and how it is called."""

    model: str
    kind: Kind
    missing: Sequence[str]
    call: Mapping[str, Any]

    @classmethod
    def of(cls, model: Model) -> "Aligned":
        """Of a model that is here."""
        index, size = Index(model), model.model_dump(include={"height", "width", "num_inference_steps"})
        return cls(model.id, index.family.kind, index.missing, size | index.family.render_options(model))


def _front_matter(aligned: Aligned) -> str:
    tags = ["lora", "safety", "flow-dpo" if aligned.kind.flow else "diffusion-dpo"]
    facts = {"base_model": aligned.model, "library_name": "diffusers", "tags": tags}
    text = yaml.safe_dump(facts, default_flow_style=None, sort_keys=False, allow_unicode=True, width=math.inf)
    return f"---\n{text}---\n"


def _load(aligned: Aligned) -> str:
    return LOAD.format(
        model=json.dumps(aligned.model, ensure_ascii=False),
        missing="".join(f", {part}=None" for part in aligned.missing),
        call=", ".join(f"{name}={value!r}" for name, value in aligned.call.items()),
    )


def _draws(kind: Kind, config: Train, sampling: str) -> str:
    """How a step noises its images, as an item of the card."""
    shifted = ", shifted as the model's scheduler shifts its steps" if kind.flow else ""
    fixed = f"; {config.draws} fixed draws of each pair" if config.reference == "cached" else ""
    return f"- timesteps {SAMPLING[sampling]}{shifted}; {NOISE[config.noise]}{fixed}"


def expert_card(
    name: str, aligned: Aligned, config: Train, sampling: str, steps: int, pairs: int, log: pd.DataFrame
) -> str:
    """What an expert is, from which data and settings, how training ended, how to load it.

    sampling: how timesteps were drawn, where the config says nothing too.
    """
    kind = aligned.kind
    last = log.tail(max(1, len(log) // 10)).mean()
    loss = LOSSES[config.loss][kind.flow]
    weights = {"preservation": config.preserve.weight, "anchor": config.anchor}
    terms = "".join(f", {term} weight {weight:g}" for term, weight in weights.items() if weight)
    prompt = {"both": "the unsafe or the safe prompt"}.get(config.condition, f"the {config.condition} prompt")
    resolved = {"target_modules": config.target_modules or list(kind.targets), "timestep_sampling": sampling}
    settings = config.model_copy(update=resolved).model_dump(exclude={"steps", "all_single"})
    return f"""{_front_matter(aligned)}
# Safety expert `{name}`

A LoRA (rank {config.rank}) for the {kind.component} of `{aligned.model}`, trained with {loss} on {pairs} pairs
of images that this model rendered from an unsafe and a safe prompt with one seed: the safe image of each pair is
preferred under {prompt}.

- {steps} steps of {config.batch_size * config.gradient_accumulation_steps * config.gpus} pairs, {config.optimizer}, \
learning rate {log.lr.max():g}, beta {config.beta:g} (errors are means over a latent's elements){terms}
{_draws(kind, config, sampling)}
- at the end (mean of the last tenth): loss {last.loss:.4f}, implicit accuracy {last.implicit_accuracy:.3f}, winner's \
error {last.winner_error:.4f} against the reference's {last.reference_winner_error:.4f} (far above it: harmless \
images suffer)

`training.parquet` has every step. The run's `prompts/` and `pairs/` are the data; its `config.yaml` says where they
came from.

{_load(aligned)}
## Settings

```yaml
{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}```
"""


def merged_card(strategy: str, aligned: Aligned, experts: list[str], rank: int) -> str:
    """What a merged LoRA is and how to load it."""
    return f"""{_front_matter(aligned)}
# Merged safety LoRA, strategy `{strategy}`

Joins the experts {", ".join(experts)} for the {aligned.kind.component} of `{aligned.model}` into one LoRA of rank
{rank}. The strength that the report uses stands in `tuning/` of the run (of its own merge in `merged-{strategy}.json`);
scale 1 is the merge as such.

{_load(aligned)}"""
