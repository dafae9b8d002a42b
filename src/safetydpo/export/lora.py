"""A LoRA as diffusers' save_lora_weights writes it, to be loaded at strength 1."""

import json
from pathlib import Path

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from diffusers.utils.peft_utils import get_peft_kwargs

from safetydpo.export.factors import in_precision, update_of
from safetydpo.export.header import base_architecture, modelspec
from safetydpo.export.request import Asked, Made
from safetydpo.models.index import Index
from safetydpo.models.lora import FILE, Factors
from safetydpo.storage.files import write_safetensors

LOAD = """```python
pipe.load_lora_weights("this folder")  # strength 1: the scale that the run chose is in the file
```

`pipe` is the base model's; PEFT makes a `LoraConfig` of the header's `lora_adapter_metadata`. ComfyUI reads this
file for transformers (SD3, FLUX, Z-Image); for a UNet it and A1111 want the format `kohya`."""


def metadata_of(factors: Factors, component: str) -> dict[str, str]:
    """The header by which diffusers, or PEFT itself, makes the adapter: ranks, alphas equal to them, modules."""
    ranks = {f"^{name}.lora_B.weight": b.shape[1] for name, (_, b) in factors.items()}
    facts = get_peft_kwargs(ranks, None, {f"{name}.lora_A.weight": a for name, (a, _) in factors.items()})
    facts["target_modules"] = sorted(facts["target_modules"])
    packed = {f"{component}.{key}": value for key, value in facts.items()}
    return {LORA_ADAPTER_METADATA_KEY: json.dumps(packed, indent=2, sort_keys=True)}


def make(asked: Asked) -> Made:
    """The update of the method, its scale folded in."""
    update, component = update_of(asked), Index(asked.config.model).family.kind.component
    factors = in_precision(update.factors, asked.dtype)
    tensors = {}
    for name, (a, b) in sorted(factors.items()):
        tensors |= {f"{component}.{name}.lora_A.weight": a, f"{component}.{name}.lora_B.weight": b}
    header = metadata_of(factors, component) | modelspec(
        base_architecture(asked), asked, adapter=True, diffusers_keys=True
    )

    def save(folder: Path) -> None:
        write_safetensors(tensors, folder / FILE, {"format": "pt", **header, **asked.header})

    return Made(save, LOAD, update.notes(asked.rank))
