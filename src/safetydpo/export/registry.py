"""In which formats methods leave the workflow. Adding one is an entry of FORMATS and a file beside this one.

Free of torch: commands and rules read it too.
"""

from collections.abc import Mapping
from typing import NamedTuple

from safetydpo.errors import SafetyDPOError
from safetydpo.methods.registry import LORA, Method, method_of
from safetydpo.models.families.registry import NOTHING, Kind


class Format(NamedTuple):
    """A format. adapter: it holds what changed, to be put on the base; else it is a model of its own."""

    name: str
    opens: str  # asked -> made, file:name in this room
    what: str
    adapter: bool = False
    lacks: Mapping[str, str] = NOTHING  # family -> why there is none of it


FORMATS = {
    kind.name: kind
    for kind in (
        Format("pipeline", "pipeline:make", "a whole diffusers folder"),
        Format("lora", "lora:make", "a LoRA for diffusers and PEFT, of transformers for ComfyUI too", adapter=True),
        Format(
            "kohya",
            "kohya:make",
            "a LoRA for ComfyUI, A1111 and sd-scripts",
            adapter=True,
            lacks={"sd3": "diffusers reads no such file of it, by which one could be proven; take `lora`"},
        ),
        Format(
            "single-file",
            "single_file:make",
            "a checkpoint in the original layout, for ComfyUI; of UNets for A1111 too",
        ),
    )
}


def asked_for(name: str, form: str, rank: int | None = None) -> tuple[Method, Format]:
    """The method and the format of these names; SafetyDPOError where such a method has no weights to export, or the
    rank is one too many or missing.
    """
    method = method_of(name)
    if form not in FORMATS:
        raise SafetyDPOError(f"No format {form}: there are {', '.join(FORMATS)}.")
    if not method.kind.aligned:
        raise SafetyDPOError(f"{name} is the model as it is, there is nothing to export: take the folder of model.id.")
    if not (method.weights or method.kind.of == "name"):
        raise SafetyDPOError(
            f"{name} acts while images are rendered and has no weights to export: export a method that has, such as "
            "merged-co-merge."
        )
    wanted = FORMATS[form]
    if rank is not None and not wanted.adapter:
        raise SafetyDPOError(f"--rank is of LoRAs, and {form} holds whole weights: leave it out.")
    if rank is None and wanted.adapter and not is_lora(method):
        raise SafetyDPOError(
            f"{name} is no LoRA of the run: {form} of it needs a rank, at which its change of each layer is cut off; "
            "give `safetydpo export --rank` (of the rule: export.rank), such as 32, or take `pipeline`."
        )
    return method, wanted


def is_lora(method: Method) -> bool:
    """Whether a LoRA of the run is all of a method."""
    return (method.weights or "").endswith(LORA)


def refuse_family(form: Format, kind: Kind, model: str) -> None:
    """SafetyDPOError where there is no such format of the model's family."""
    if why := form.lacks.get(kind.name):
        raise SafetyDPOError(f"{form.name} cannot be had of {model}, of family {kind.name}: {why}.")
