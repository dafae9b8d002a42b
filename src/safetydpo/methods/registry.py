"""What can render: every kind of method. Adding one is an entry of KINDS and a file beside this one.

Free of torch: config and rules read it too. `opening` makes the pipeline of a method.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from safetydpo.errors import SafetyDPOError

# base-reseed is the base model on other seeds: the yardstick for distances between image sets.
RESEED = 1_000_003
SLD_PRESETS = ("weak", "medium", "strong", "max")
LORA, WEIGHTS = "pytorch_lora_weights.safetensors", "weights.safetensors"


class Kind(NamedTuple):
    """Methods of one kind.

    `name` and `weights` may hold a `*`, which stands for one of `of`: names that the config has (of its categories,
    strategies, externals, variants), or fixed ones.
    """

    name: str
    opens: str  # opening -> pipeline, file:name in this room
    of: str | tuple[str, ...] = ()
    weights: str | None = None  # the file of the run that it renders with
    aligned: bool = True  # False: the model as it is, with which the others are compared
    tuned: bool = False  # whether the scale of its LoRA is tuned
    seed_offset: int = 0
    settings: tuple[str, ...] = ()  # keys of `baselines` that change how it renders
    eraser: str | None = None  # erasure -> weights, file:name in the room baselines
    erased_with: tuple[str, ...] = ()  # keys of `baselines` that change these weights
    gradients: bool = True  # False: it acts while rendering, so that an attack cannot derive its error
    guided: bool = False  # whether it changes classifier-free guidance, which then must be on

    @property
    def trained(self) -> bool:
        """Whether it is a LoRA that the run trains on prompt pairs; a run without such a method is an audit."""
        return self.weights is not None and self.eraser is None

    def method(self, variant: str = "") -> "Method":
        """The method of that variant: what `*` stands for."""
        weights = self.weights and self.weights.replace("*", variant)
        return Method(self, self.name.replace("*", variant), variant, weights)


class Method(NamedTuple):
    """One method: its kind, its name, what the `*` of the kind's name stands for, the file of the run it needs."""

    kind: Kind
    name: str
    variant: str
    weights: str | None


def _eraser(name: str, file: str) -> Kind:
    """A baseline that changes weights of the network; its settings are the section baselines.<file>."""
    return Kind(
        name,
        "weights:open_pipeline",
        weights=f"baselines/{name}/{WEIGHTS}",
        eraser=f"{file}:erase",
        erased_with=("concepts", file),
    )


KINDS = (
    Kind("base", "lora:open_pipeline", aligned=False),
    Kind("base-reseed", "lora:open_pipeline", aligned=False, seed_offset=RESEED),
    Kind("expert-*", "lora:open_pipeline", of="category", weights=f"experts/*/{LORA}"),
    Kind("all-single", "lora:open_pipeline", weights=f"experts/all-single/{LORA}", tuned=True),
    Kind("merged-*", "lora:open_pipeline", of="strategy", weights=f"merged/*/{LORA}", tuned=True),
    Kind(
        "negative-prompt",
        "negative_prompt:open_pipeline",
        settings=("sld_concept", "negative_prompt"),
        gradients=False,
        guided=True,
    ),
    Kind("sld-*", "sld:open_pipeline", of=SLD_PRESETS, settings=("sld_concept",), gradients=False, guided=True),
    _eraser("esd-u", "esd"),
    _eraser("esd-x", "esd"),
    _eraser("uce", "uce"),
    Kind("external-*", "external:open_pipeline", of="name", settings=("externals",)),
    Kind("ablation-*", "lora:open_pipeline", of="variant", weights=f"ablation/*/merged/{LORA}", tuned=True),
)
ERASERS = tuple(kind.name for kind in KINDS if kind.eraser)
REFERENCES = tuple(kind.name for kind in KINDS if not kind.aligned)
GUIDED = tuple(kind.name for kind in KINDS if kind.guided)


def method_names(known: Mapping[str, Sequence[str]]) -> list[str]:
    """Names of all methods of a config, whose own names are `known`: category, strategy, name (external), variant."""
    return [
        kind.method(variant).name
        for kind in KINDS
        for variant in ([""] if "*" not in kind.name else known[kind.of] if isinstance(kind.of, str) else kind.of)
    ]


def method_of(name: str) -> Method:
    """The method of that name; SafetyDPOError lists what there is."""
    for kind in KINDS:
        head, star, _ = kind.name.partition("*")
        variant = name.removeprefix(head) if star and name.startswith(head) else ""
        fixed = kind.of if isinstance(kind.of, tuple) else ()
        if (star and variant and (not fixed or variant in fixed)) or (not star and name == kind.name):
            return kind.method(variant)
    there = ", ".join(_spelled(kind) for kind in KINDS)
    raise SafetyDPOError(f"No method {name}: there are {there}.")


def _spelled(kind: Kind) -> str:
    """`expert-<category>`, `sld-<weak|medium|strong|max>`."""
    return kind.name.replace("*", f"<{kind.of if isinstance(kind.of, str) else '|'.join(kind.of)}>")
