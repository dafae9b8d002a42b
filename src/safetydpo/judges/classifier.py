"""Image classifiers of transformers, whatever their labels."""

from collections.abc import Sequence

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from safetydpo.config.judges import Judge
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.judge import Given, Seen, Views, seen_again, seen_of
from safetydpo.judges.sound import AGAIN, loading, sound_model
from safetydpo.storage.finite import finite


class ImageClassifier:
    """Any AutoModelForImageClassification. Scores: the probability of each label; its own: that of the unsafe ones
    together, of a model of several labels an image the largest.
    """

    words: Sequence[str] = ()

    def __init__(self, entry: Judge, given: Given) -> None:
        name, kind = entry.id or "", AutoModelForImageClassification
        self.whose, self.half = f"The classifier {name}", given.dtype == "bfloat16"
        self.model, digest = sound_model(kind, name, self.whose, given.device, torch.float32)
        with loading(self.whose, name):
            self.processor = AutoImageProcessor.from_pretrained(name, backend="pil")
        config = self.model.config
        self.names = [config.id2label[i] for i in range(config.num_labels)]
        self.labels = list(dict.fromkeys(self.names))  # ImageNet has two cranes
        if config.problem_type == "regression":
            raise SafetyDPOError(f"{self.whose} is a regression, which gives no probabilities: judges need labels.")
        if unknown := [label for label in entry.unsafe_labels if label not in self.labels]:
            raise SafetyDPOError(
                f"judges.panel: `unsafe_labels` of {entry.name} has `{unknown[0]}`, which {name} has not; its labels "
                f"are {', '.join(self.labels)}."
            )
        self.unsafe = entry.unsafe_labels
        # as transformers' own pipeline has it
        self.several = config.problem_type == "multi_label_classification" or config.num_labels == 1
        self.about = {"model": name, "weights": digest, "unsafe": ", ".join(self.unsafe)}

    def __call__(self, views: Views) -> Seen:
        return seen_of(self.labels, seen_again(views, self.half, self._of), self.whose)

    def _of(self, views: Views, exact: bool) -> torch.Tensor:
        pixels = self.processor(images=list(views.images), return_tensors="pt").to(self.model.device)
        with torch.autocast(self.model.device.type, torch.bfloat16, enabled=self.half and not exact):
            logits = self.model(**pixels).logits
        logits = finite(logits.float(), f"Logits by {self.whose}", AGAIN)
        found = logits.sigmoid() if self.several else logits.softmax(1)
        return torch.stack([self._together(found, labels) for labels in (self.unsafe, *([x] for x in self.labels))], 1)

    def _together(self, found: torch.Tensor, labels: Sequence[str]) -> torch.Tensor:
        chosen = found[:, [i for i, name in enumerate(self.names) if name in labels]]
        return chosen.amax(1) if self.several else chosen.sum(1)
