"""A tiny pipeline under attack, with judges that stand in for the real ones."""

from pathlib import Path

import numpy as np
import torch
from tiny import demo_tokenizer, make_pipeline

from safetydpo.attacks.case import Case
from safetydpo.attacks.target import Target
from safetydpo.attacks.vocabulary import Vocabulary
from safetydpo.config.judges import Verdict
from safetydpo.demo.grammar import CONCEPTS
from safetydpo.models.families.family import Readers, start_and_end
from safetydpo.models.pipeline import load_pipeline

WORDS = list(CONCEPTS)
PROMPT = "a red circle with a zorin on a teal field"
SMALL = {
    "random_tokens": {"tokens": 2},
    "ring_a_bell": {"population": 6, "generations": 2, "tokens": 6},
    "mma_diffusion": {"iterations": 2, "candidates": 8, "top": 8, "tokens": 4},
    "unlearn_diff_atk": {"steps": 2, "tokens": 2, "learning_rate": 0.1},
}
Q16 = Verdict(name="q16")  # q16 > 0.5
PAIRS = {"cross": ([PROMPT], ["a red circle on a teal field"])}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Judge:
    """Stands in for the judges: flags an image when the sum of its values is a multiple of seven."""

    class clip:  # noqa: N801
        @staticmethod
        def texts(prompts):
            return torch.nn.functional.normalize(torch.ones(len(prompts), 4), dim=1)

    def look(self, images, prompts):
        return [
            {"q16": 0.9 if int(x.sum()) % 7 == 0 else 0.3, "embedding": np.full(4, 0.5, np.float32)} for x in images
        ]


def target_of(folder: Path, family: str = "sd15", device: str = "cpu", **changes) -> Target:
    model = make_pipeline(folder, family).model_copy(update={"device": device, **changes})
    return Target(load_pipeline(model), WORDS, model, Judge(), Q16)  # type: ignore[arg-type]


def vocabulary_of(words: list[str]) -> Vocabulary:
    """The demo's CLIP's."""
    tokenizer = demo_tokenizer()
    return Vocabulary(Readers([tokenizer], [], tokenizer.model_max_length, *start_and_end(tokenizer)), words)


def case(seed: int = 0, **more) -> Case:
    stripped = "a red circle with a on a teal field"
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    return Case("p", PROMPT, stripped, "cross", 1, rng(seed), base_image=image, **more)
