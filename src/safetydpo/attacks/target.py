"""What an attack can reach of a method: its text encoders (with gradients), its network's error, images, the judges."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from safetydpo.attacks.vocabulary import Sequences, Vocabulary
from safetydpo.config.judges import Verdict
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.eyes import Eyes
from safetydpo.judges.sound import sound_scores
from safetydpo.judges.verdicts import danger_of, verdict_of
from safetydpo.models.pipeline import finite_of, unwrapped
from safetydpo.models.sampling import images_of

AT_ONCE = 256  # sequences through a text encoder


class Seen(NamedTuple):
    """What the judges say of an image: flagged or not, its category where a judge knows, how unsafe it is (0 to 1: the
    first score of the verdict), CLIP's embedding.
    """

    flagged: bool
    category: str | None
    danger: float
    embedding: np.ndarray


class Encoded(NamedTuple):
    """Text as the encoders under attack give it (`Family.readers`): hidden states (n, window, d), a vector (n, d)."""

    hidden: torch.Tensor
    pooled: torch.Tensor


class Target:
    """A method under attack."""

    def __init__(self, pipeline: Any, forbidden: Sequence[str], model: Model, eyes: Eyes, verdict: Verdict) -> None:
        self.rendering = pipeline
        self.pipeline = unwrapped(pipeline)
        if getattr(self.pipeline, "text_encoder", None) is None or getattr(self.pipeline, "tokenizer", None) is None:
            raise SafetyDPOError(
                f"attacks: {model.id} has no text encoder that an attack could reach: take the method out of "
                "attacks.methods."
            )
        self.family = pipeline.family
        self.readers = self.family.readers(self.pipeline, model)
        tokenizers, self.encoders = self.readers.tokenizers, self.readers.encoders
        if any(t.get_vocab() != tokenizers[0].get_vocab() for t in tokenizers):
            raise SafetyDPOError(f"attacks: the tokenizers of {model.id} have different tokens; attacks need one set.")
        self.pads = [tokenizer.pad_token_id for tokenizer in tokenizers]
        self.network = self.family.network(self.pipeline)
        for part in (*self.encoders, self.network):
            part.requires_grad_(False)
        self.vocabulary = Vocabulary(self.readers, forbidden)
        self.model, self.eyes, self.verdict, self.device = model, eyes, verdict, self.network.device
        self.seconds, self._begin = 0.0, perf_counter()  # in the model's passes; since the target was opened

    def numbers(self, values: torch.Tensor, what: str) -> torch.Tensor:
        """What the model computed, as it is; SafetyDPOError where it is NaN or infinite."""
        return finite_of(self.pipeline, values, f"attacks: {what} of {self.model.id} are not finite")

    def begun(self) -> float:
        """Seconds since the target was opened."""
        return perf_counter() - self._begin

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the block's seconds as the model's."""
        begin = perf_counter()
        try:
            yield
        finally:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self.seconds += perf_counter() - begin

    def encode(self, sequences: Sequences) -> Encoded:
        """Encode n sequences; without gradients."""
        with torch.no_grad(), self.timed():
            return self._encode(sequences)

    def _encode(self, sequences: Sequences) -> Encoded:
        padded = [self.vocabulary.padded(sequences, pad).to(self.device) for pad in self.pads]
        hidden, pooled = self.family.read(self.readers, padded)
        return Encoded(
            self.numbers(hidden.float(), "text embeddings"), self.numbers(pooled.float(), "pooled text embeddings")
        )

    def encode_soft(self, sequences: Sequences, one_hot: torch.Tensor, tokens: torch.Tensor | None = None) -> Encoded:
        """Encode n sequences whose first m tokens are rows of one_hot (n, m, v) over `tokens` (v,), or over all.

        Gradients flow into one_hot.
        """
        first, last = len(self.vocabulary.start), len(self.vocabulary.start) + one_hot.shape[1]

        def put(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            weight = module.weight[: one_hot.shape[2]] if tokens is None else module.weight[tokens]
            soft = one_hot.to(weight) @ weight
            return torch.cat([output[:, :first], soft.to(output), output[:, last:]], dim=1)

        hooks = [encoder.get_input_embeddings().register_forward_hook(put) for encoder in self.encoders]
        try:
            return self._encode(sequences)
        finally:
            for hook in hooks:
                hook.remove()

    def encode_prompts(self, prompts: Sequence[str]) -> Encoded:
        """Encode prompts, cut to the window."""
        ids = [self.vocabulary.ids(prompt) for prompt in prompts]
        parts = [self.encode(ids[i : i + AT_ONCE]) for i in range(0, len(ids), AT_ONCE)]
        return Encoded(torch.cat([p.hidden for p in parts]), torch.cat([p.pooled for p in parts]))

    def look(self, prompts: Sequence[str], seeds: Sequence[int]) -> list[Seen]:
        """Render prompts in batches and ask the judges."""
        found = []
        for start in range(0, len(prompts), self.model.batch_size):
            part = slice(start, start + self.model.batch_size)
            with self.timed():
                pixels = images_of(self.rendering, list(prompts[part]), list(seeds[part]), self.model)
            rows = sound_scores(self.eyes.look(list(pixels), list(prompts[part])), "attacked images")
            scores = pd.DataFrame(rows)
            flags = verdict_of(self.verdict, scores).fillna(False).tolist()  # without a verdict nothing is reached
            danger = danger_of(self.verdict, scores).tolist()
            marks = [row.get("seen_mark") for row in rows]
            found += map(Seen, flags, marks, danger, [row["embedding"] for row in rows])
        return found
