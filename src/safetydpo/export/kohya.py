"""A LoRA in kohya's naming: modules as sd-scripts trains them, whose queries, keys and values may be one weight."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.export.factors import in_precision, update_of
from safetydpo.export.header import architecture_of, modelspec, training_of
from safetydpo.export.request import Asked, Made
from safetydpo.models.index import UNREADABLE
from safetydpo.models.layer_names import flat, layers_of, original_names
from safetydpo.models.lora import Factors, Pair
from safetydpo.models.pipeline import load_pipeline
from safetydpo.storage.files import write_safetensors

FILE = "lora.safetensors"
HEAD = "lora_unet_"
LOAD = """ComfyUI: put `lora.safetensors` into `models/loras`, node `Load LoRA`, strength 1. A1111: into `models/Lora`,
then `<lora:NAME:1>` in the prompt. diffusers:

```python
pipe.load_lora_weights("this folder", weight_name="lora.safetensors")
```"""


class Place(NamedTuple):
    """Where a layer is in the original layout: the module's name, and the layers that it is made of, in order."""

    name: str
    layers: tuple[str, ...]


def places_of(network: Any, layouts: Sequence[str]) -> dict[str, Place]:
    """Layer -> its place in a file by these layouts (see `Family.kohya_layouts`)."""
    layers, found = layers_of("network", network), {}
    if "diffusers" in layouts:
        found = {name: Place(flat(name), (name,)) for name in layers}
    if "original" in layouts:
        for original, own in original_names(network, layers):
            place = Place(flat(original), tuple(layer.name for layer in own))
            found |= dict.fromkeys(place.layers, place)
    return found


def joined(parts: list[Pair | None], outputs: list[int]) -> Pair:
    """Factors of one weight that is made of several, of equal rank each, since that is how they are told apart again.

    parts: (r, in) and (out, r) of each, None where it does not change; outputs: how many each has.
    """
    known = [part for part in parts if part is not None]
    if len(parts) == 1:
        return known[0]
    rank = max(len(a) for a, _ in known)
    down = known[0][0].new_zeros(len(parts) * rank, known[0][0].shape[1])
    up = down.new_zeros(sum(outputs), len(parts) * rank)
    for i, part in enumerate(parts):
        if part is not None:
            a, b = part
            down[i * rank : i * rank + len(a)] = a
            up[sum(outputs[:i]) : sum(outputs[: i + 1]), i * rank : i * rank + len(a)] = b
    return down, up


def kohya_tensors(factors: Factors, network: Any, layouts: Sequence[str]) -> dict[str, torch.Tensor]:
    """The tensors of a file; KeyError with a layer that has no place in it."""
    known = places_of(network, layouts)
    places = dict.fromkeys(known[layer] for layer in sorted(factors))
    tensors = {}
    for place in places:
        outputs = [len(network.get_submodule(layer).weight) for layer in place.layers]
        down, up = joined([factors.get(layer) for layer in place.layers], outputs)
        facts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(float(len(down)))}
        tensors |= {f"{HEAD}{place.name}.{name}": value.contiguous() for name, value in facts.items()}
    return tensors


def make(asked: Asked) -> Made:
    """The update of the method, its scale folded in; SafetyDPOError where diffusers would read another one back."""
    update, pipeline = update_of(asked), load_pipeline(asked.model("float32"))
    factors, network = in_precision(update.factors, asked.dtype), pipeline.family.network(pipeline)
    try:
        tensors = kohya_tensors(factors, network, pipeline.family.kohya_layouts(network.config))
    except KeyError as error:
        raise SafetyDPOError(f"kohya's naming has no {error.args[0]}, which {asked.method.name} changes.") from None
    if fault := misread(pipeline, tensors, factors):
        raise SafetyDPOError(
            f"kohya cannot be had of {asked.model_name}: diffusers does not read the file back as it is meant "
            f"({fault}); take `lora`."
        )
    rank = max(len(tensor) for name, tensor in tensors.items() if name.endswith("lora_down.weight"))
    name = architecture_of(pipeline)
    header = training_of(name, rank) | modelspec(name, asked, adapter=True, diffusers_keys=False)

    def save(folder: Any) -> None:
        write_safetensors(tensors, folder / FILE, {"format": "pt", **header, **asked.header})

    return Made(save, LOAD, update.notes(asked.rank))


@torch.no_grad()
def misread(pipeline: Any, tensors: Mapping[str, torch.Tensor], factors: Factors) -> str:
    """How the change that diffusers' own loading makes of a file differs from the factors; "" where it does not."""
    network = pipeline.family.network(pipeline)
    try:
        pipeline.load_lora_weights({name: tensor.clone() for name, tensor in tensors.items()}, adapter_name="read")
    except (*UNREADABLE, KeyError, AssertionError, RuntimeError) as error:
        return (str(error).strip() or type(error).__name__).split("\n")[0][:200]
    read = {}
    for layer, module in network.named_modules():
        if "read" in getattr(module, "lora_A", {}):
            read[layer] = module.get_delta_weight("read").float()
    pipeline.unload_lora_weights()
    for layer in sorted(read.keys() | factors.keys()):
        a, b = (factor.float() for factor in factors.get(layer, (torch.zeros(1, 1), torch.zeros(1, 1))))
        meant = (b.flatten(1) @ a.flatten(1)).reshape(len(b), *a.shape[1:])
        if layer not in read:
            return f"it leaves out {layer}"
        if not torch.allclose(read[layer], meant if layer in factors else torch.zeros(()), atol=1e-5, rtol=1e-4):
            return f"it reads another {layer}"
    return ""
