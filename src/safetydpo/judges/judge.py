"""What a judge is, what it looks at, and what it gives."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.judges.sound import AGAIN
from safetydpo.storage.finite import finite

if TYPE_CHECKING:  # transformers, which a copy of a judge's file does without
    from safetydpo.judges.clip import ClipEyes

# Where bfloat16 could put a probability on the wrong side of a threshold from 0.1 to 0.95: logits within 1.4 of them.
# Over 720 renders of the demo Q16's were off by 0.14 at most.
DOUBT = (0.026, 0.988)


class Seen(NamedTuple):
    """Of a batch. scores: label ("": the judge's own score) -> a number an image, None where it gave no verdict;
    words: column -> a text an image; features: (b, d), where the judge has any.
    """

    scores: Mapping[str, Sequence[float | None]]
    words: Mapping[str, Sequence[str | None]] = MappingProxyType({})
    features: torch.Tensor | None = None


class Views:
    """A batch of uint8 images (h, w, 3), which may differ in size, and what several judges want of them, once."""

    def __init__(self, images: list[np.ndarray]) -> None:
        self.images = images
        self._projected: dict[int, torch.Tensor] = {}

    def projected(self, clip: "ClipEyes", exact: bool) -> torch.Tensor:
        """CLIP's embeddings (b, d), not normalised; exact: in float32 whatever its dtype."""
        if exact and clip.half:
            return clip.projected(self.images, exact=True)
        if id(clip) not in self._projected:
            self._projected[id(clip)] = clip.projected(self.images)
        return self._projected[id(clip)]


class Given(NamedTuple):
    """What a judge is made with beside its entry in the panel.

    clip: name -> that CLIP, which judges share; own: whether `path` is the run's own copy; journals: folder in which
    answers of servers are kept.
    """

    device: torch.device
    dtype: str
    clip: "Callable[[str], ClipEyes]"
    own: bool
    journals: Path


class JudgeOfImages(Protocol):
    """Made with (entry of the panel, Given); looks at batches."""

    labels: Sequence[str]  # of `scores`, without ""
    words: Sequence[str]  # of `words`
    about: dict[str, str]  # what it is: versions, hashes, what counts; for headers and the feet of tables

    def __call__(self, views: Views) -> Seen: ...


def seen_of(labels: Sequence[str], probabilities: torch.Tensor, whose: str) -> Seen:
    """Of probabilities (b, 1 + k): the judge's own, and those of its k labels; SafetyDPOError where one is none."""
    columns = finite(probabilities, f"Probabilities by {whose}", AGAIN).T.tolist()
    return Seen(dict(zip(("", *labels), columns, strict=True)))


def policy_of(path: Path, name: str) -> str:
    """The text of a policy of the judge `name`; SafetyDPOError where there is none."""
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise SafetyDPOError(f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8.") from None
    except OSError as error:
        raise SafetyDPOError(
            f"{path} cannot be read ({error.strerror}): `policy` of judges.panel: {name} must be a text file that says "
            "what is unsafe, such as config/policy.txt."
        ) from None
    if not text:
        raise SafetyDPOError(f"{path}, the policy of judges.panel: {name}, is empty: say in it what is unsafe.")
    return text


def seen_again(views: Views, half: bool, probabilities: Callable[[Views, bool], torch.Tensor]) -> torch.Tensor:
    """Probabilities (b, k) of a batch; of images that have one in DOUBT, after `half` precision, in full.

    probabilities: (views, exact) -> (b, k).
    """
    found = probabilities(views, False)
    if half:
        doubtful = ((found > DOUBT[0]) & (found < DOUBT[1])).any(1).nonzero()[:, 0].tolist()
        if doubtful:
            found[doubtful] = probabilities(Views([views.images[i] for i in doubtful]), True).to(found)
    return found
