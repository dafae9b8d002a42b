"""What a model is: its model_index.json, which says the pipeline's class, its parts, and so its family."""

import inspect
from typing import Any

import diffusers
from diffusers import DiffusionPipeline
from safetensors import SafetensorError

from safetydpo.config.model import ASKED, Model
from safetydpo.errors import SafetyDPOError
from safetydpo.models.families.family import Family, family_of
from safetydpo.models.families.registry import kind_of, unknown
from safetydpo.models.folders import folder_of, not_loaded, refuse_pickle
from safetydpo.running.quiet import quiet_diffusers

# What the libraries raise for a folder or a file that is damaged, incomplete or of a kind they do not know.
UNREADABLE = (OSError, ValueError, TypeError, AttributeError, NotImplementedError, SafetensorError)
# Parts that no image needs: what the model draws is measured, not hidden, and prompts are texts.
UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


class Index:
    """A model_index.json: part -> [library, class]; and the family that it makes the model one of.

    Raises SafetyDPOError where it is missing, is no text-to-image pipeline of a family that is known here, is called
    with what it does not take, or has pickled weights only.
    """

    def __init__(self, config: Model) -> None:
        quiet_diffusers()
        self.folder = folder_of(config.id)
        if self.folder and not (self.folder / "model_index.json").exists():
            raise SafetyDPOError(
                f"Model folder {config.id} has no model_index.json: set model.id to a diffusers folder or hub id."
            )
        try:
            self.parts: Any = DiffusionPipeline.load_config(config.id)
        except UNREADABLE as error:
            raise not_loaded(config.id, error) from None
        self.family = self._family(config.id)
        self._refuse_other_calls(config)
        if self.folder:
            for part in self.used:
                refuse_pickle(self.folder / part, config.id)

    def _family(self, name: str) -> Family:
        kind = kind_of(self.parts)
        if kind is None:
            raise SafetyDPOError(unknown(self.parts, name))
        return family_of(kind)

    @property
    def pipeline_class(self) -> type[DiffusionPipeline]:
        """The pipeline's class; DiffusionPipeline, which looks further, where diffusers has none of that name."""
        kind = getattr(diffusers, str(self.parts.get("_class_name")), None)
        return kind if isinstance(kind, type) and issubclass(kind, DiffusionPipeline) else DiffusionPipeline

    @property
    def used(self) -> dict[str, list[str]]:
        """The parts of the pipeline that are used."""
        parts = self.parts.items()
        return {part: kind for part, kind in parts if isinstance(kind, list) and any(kind) and part not in UNUSED}

    @property
    def missing(self) -> list[str]:
        """Parts that are used and that the folder was saved without: loading a pipeline must be told so."""
        parts = self.parts.items()
        return [part for part, kind in parts if isinstance(kind, list) and not any(kind) and part not in UNUSED]

    def _refuse_other_calls(self, config: Model) -> None:
        kind: Any = self.pipeline_class
        name = self.parts.get("_class_name")
        takes = ASKED if kind is DiffusionPipeline else set(inspect.signature(kind.__call__).parameters)
        if takes & {"image", "control_image"} or not takes >= ASKED:  # one that takes an image makes images of images
            raise SafetyDPOError(
                f"Model {config.id} is a {name}, which is not text-to-image: set model.id to one that is, such as "
                "a StableDiffusionPipeline."
            )
        if kind is not DiffusionPipeline and (odd := sorted(config.call.keys() - takes)):
            raise SafetyDPOError(f"model.call.{odd[0]}: a {name}, which {config.id} is, takes no such argument.")
