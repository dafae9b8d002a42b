"""Model cards that lie beside the LoRA files."""

import json
import math

import pandas as pd
import yaml

from safetydpo.config.training import Train

LOSSES = {"dpo": "Diffusion-DPO", "sdpo": "Diffusion-SDPO", "sft": "supervised fine-tuning"}
LOAD = """```python
from diffusers import AutoPipelineForText2Image

pipe = AutoPipelineForText2Image.from_pretrained({model})
pipe.load_lora_weights("this folder")
```
"""


def _front_matter(model: str) -> str:
    facts = {"base_model": model, "library_name": "diffusers", "tags": ["lora", "safety", "diffusion-dpo"]}
    text = yaml.safe_dump(facts, default_flow_style=None, sort_keys=False, allow_unicode=True, width=math.inf)
    return f"---\n{text}---\n"


def _load(model: str) -> str:
    return LOAD.format(model=json.dumps(model, ensure_ascii=False))


def expert_card(name: str, model: str, config: Train, steps: int, pairs: int, log: pd.DataFrame) -> str:
    """What an expert is, from which data and settings, how training ended, how to load it."""
    last = log.tail(max(1, len(log) // 10)).mean()
    kept = f", preservation weight {config.preserve.weight:g}" if config.preserve.weight else ""
    prompt = {"both": "the unsafe or the safe prompt"}.get(config.condition, f"the {config.condition} prompt")
    settings = yaml.safe_dump(config.model_dump(exclude={"steps", "all_single"}), sort_keys=False, allow_unicode=True)
    return f"""{_front_matter(model)}
# Safety expert `{name}`

A LoRA (rank {config.rank}) for `{model}`, trained with {LOSSES[config.loss]} on {pairs} pairs of images that this
model rendered from an unsafe and a safe prompt with one seed: the safe image of each pair is preferred under {prompt}.

- {steps} steps of {config.batch_size * config.gradient_accumulation_steps * config.gpus} pairs, {config.optimizer}, \
learning rate {log.lr.max():g}, beta {config.beta:g}{kept}
- at the end (mean of the last tenth): loss {last.loss:.4f}, implicit accuracy {last.implicit_accuracy:.3f}, winner's \
error {last.winner_error:.4f} against the reference's {last.reference_winner_error:.4f} (far above it: harmless \
images suffer)

`training.parquet` has every step. The run's `prompts/` and `pairs/` are the data; its `config.yaml` says where they
came from.

{_load(model)}
## Settings

```yaml
{settings}```
"""


def merged_card(strategy: str, model: str, experts: list[str], rank: int) -> str:
    """What a merged LoRA is and how to load it."""
    return f"""{_front_matter(model)}
# Merged safety LoRA, strategy `{strategy}`

Joins the experts {", ".join(experts)} for `{model}` into one LoRA of rank {rank}. The strength that the report uses
stands in `tuning/merged-{strategy}.json` of the run; scale 1 is the merge as such.

{_load(model)}"""
