"""Where in a network a LoRA can sit."""

from collections.abc import Iterable

from torch import nn

from safetydpo.errors import SafetyDPOError


def refuse_targets(network: nn.Module, targets: Iterable[str], model: str) -> None:
    """SafetyDPOError for a target that no module's name ends in, or whose module a LoRA cannot sit on.

    targets: of `train.target_modules`; model: id of the model, for the message.
    """
    for target in targets:
        ends = [(name, module) for name, module in network.named_modules() if f".{name}".endswith(f".{target}")]
        if not ends:
            raise SafetyDPOError(
                f"train.target_modules: no module of the network of {model} has a name that ends in {target}: "
                "correct the name, or take it out."
            )
        for name, module in ends:
            if why := _unfit(module):
                raise SafetyDPOError(
                    f"train.target_modules: {target} is {name} in the network of {model}, {why}: a LoRA sits on linear "
                    "layers and plain convolutions; name those, or take it out."
                )


def _unfit(module: nn.Module) -> str:
    """Why a LoRA cannot sit on a module; "" where it can. PEFT's of a convolution has no dilation and zero padding."""
    if isinstance(module, nn.Linear):
        return ""
    if not isinstance(module, nn.Conv2d):
        return f"of type {type(module).__name__}"
    plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
    return "" if plain else "a convolution in groups, dilated, or padded with other than zeros"
