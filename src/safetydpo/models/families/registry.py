"""Which model families there are. Adding one is an entry of FAMILIES and a file beside this one (docs/models.md).

Free of torch: config, rules and docs read it too. A model's family follows from its pipeline folder's model_index.json.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
# Projections of the text tokens beside those of the image's, in a transformer of two streams.
TEXT_STREAM = ("add_q_proj", "add_k_proj", "add_v_proj")
# All attention projections of such a transformer.
TWO_STREAMS = tuple(f"attn.{name}" for name in (*ATTENTION, *TEXT_STREAM, "to_add_out"))
NOTHING: Mapping[str, str] = MappingProxyType({})


class Kind(NamedTuple):
    """A family. `refuses` says what cannot be done with it, by the name of a method's kind or of an attack, and why."""

    name: str
    models: str  # of which it is, as people call them
    opens: str  # its class, file:name in this folder
    component: str  # the part that trains; keys of its LoRA begin with it
    network: str  # that part's class in diffusers
    targets: tuple[str, ...]  # modules that get a LoRA, by the end of their names, where the config names none
    text_layers: tuple[str, ...]  # parts of the names of layers by which the text reaches the image
    frame: tuple[str, ...]  # what names of embeddings, modulation and output begin with: erasing keeps them
    flow: bool = True  # predicts velocities (flow matching), not noises
    refuses: Mapping[str, str] = NOTHING


NO_CROSS_ATTENTION = "it has no cross-attention, whose keys and values UCE changes"
FAMILIES = (
    Kind(
        "unet",
        "Stable Diffusion 1.x, 2.x, XL",
        "unet:Unet",
        component="unet",
        network="UNet2DConditionModel",
        targets=ATTENTION,
        text_layers=("attn2",),
        frame=("time_embedding", "add_embedding", "conv_out"),
        flow=False,
    ),
    Kind(
        "sd3",
        "Stable Diffusion 3, 3.5 medium and large",
        "sd3:Sd3",
        component="transformer",
        network="SD3Transformer2DModel",
        targets=TWO_STREAMS,
        text_layers=TEXT_STREAM,
        frame=("pos_embed", "time_text_embed", "context_embedder", "norm_out", "proj_out"),
        refuses={"uce": NO_CROSS_ATTENTION},
    ),
    Kind(
        "flux",
        "FLUX.1 dev and schnell",
        "flux:Flux",
        component="transformer",
        network="FluxTransformer2DModel",
        targets=TWO_STREAMS,
        text_layers=TEXT_STREAM,
        frame=("x_embedder", "time_text_embed", "context_embedder", "norm_out", "proj_out"),
        refuses={
            "uce": NO_CROSS_ATTENTION,
            "sld-*": "its guidance is distilled into it, and SLD changes classifier-free guidance",
            "negative-prompt": "its guidance is distilled into it, and negative prompts need classifier-free guidance",
        },
    ),
    Kind(
        "z-image",
        "Z-Image, Z-Image-Turbo",
        "z_image:ZImage",
        component="transformer",
        network="ZImageTransformer2DModel",
        targets=tuple(f"attention.{name}" for name in ATTENTION),
        text_layers=(),
        frame=("all_x_embedder", "t_embedder", "cap_embedder", "all_final_layer", "x_pad_token", "cap_pad_token"),
        refuses={
            "uce": NO_CROSS_ATTENTION,
            "esd-x": "text reaches the image through attention that both share: there is none of the text alone",
            "unlearn-diff-atk": "the attack's prefix is made of tokens that are words whatever stands beside them, and "
            "the model's Qwen3 has none, as CLIP and T5 have",
        },
    ),
)


def kind_of(index: Mapping[str, Any]) -> Kind | None:
    """The family of a model_index.json (part -> [library, class]); None where none knows its network.

    Every UNet is of the family of that name: pipelines differ in how they call theirs, the UNet itself does not.
    """
    for kind in FAMILIES:
        part = index.get(kind.component)
        name = part[1] if isinstance(part, list | tuple) and len(part) == 2 else None
        if name and (kind.component == "unet" or name == kind.network):
            return kind
    return None


def unknown(index: Mapping[str, Any], model: str) -> str:
    """The sentence for a model of whose index `kind_of` knows no family."""
    network = next((part[1] for key in ("transformer", "prior") if (part := index.get(key))), "no network")
    families = "; ".join(f"{kind.name} ({kind.models})" for kind in FAMILIES)
    return (
        f"Model {model} is a {index.get('_class_name')} with {network}, of a family that is not known here. There are "
        f"{families}; docs/models.md says how to add one."
    )


def refusals(kind: Kind, asked: Mapping[str, str], model: str) -> list[str]:
    """A line for each thing asked of a model (how to call it -> its name in `refuses`) that it cannot do."""
    return [
        f"{what} cannot be done with {model}, of family {kind.name}: {kind.refuses[name]}; take it out"
        for what, name in asked.items()
        if name in kind.refuses
    ]
