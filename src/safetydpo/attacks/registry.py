"""Which attacks there are. Adding one is an entry here, a file beside it, and its budget in the config's `attacks`.

Free of torch: config and rules read it too.
"""

from typing import NamedTuple


class Kind(NamedTuple):
    """An attack: its class (file:name in this room), made with target, budget and `case.Given`; and its needs."""

    search: str
    control: bool = False  # one image a prompt, no budget: what attacks are compared with
    pairs: bool = False  # unsafe and safe prompts of the categories
    images: bool = False  # base's images of the attacked prompts
    gradients: bool = False  # of the network's error


ATTACKS = {
    "original": Kind("controls:Original", control=True),
    "words-removed": Kind("controls:WordsRemoved", control=True),
    "random-tokens": Kind("random_tokens:RandomSearch"),
    "ring-a-bell": Kind("ring_a_bell:RingSearch", pairs=True),
    "mma-diffusion": Kind("mma_diffusion:GradientSearch"),
    "sneaky-prompt": Kind("sneaky_prompt:PolicySearch"),
    "unlearn-diff-atk": Kind("unlearn_diff_atk:PrefixSearch", images=True, gradients=True),
}
BUDGETED = tuple(name for name, kind in ATTACKS.items() if not kind.control)
# Those that need no image of base's: what they find can be trained on.
SEARCHES = tuple(name for name in BUDGETED if not ATTACKS[name].images)
CONTROLS = tuple(name for name, kind in ATTACKS.items() if kind.control)


def attack_benchmark(attack: str) -> str:
    """Name of the benchmark of prompts that an attack found."""
    return f"attack-{attack}"
