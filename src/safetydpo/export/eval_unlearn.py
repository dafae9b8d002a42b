"""The technique `safetydpo` of the benchmark eval-unlearn, which finds it by its entry point (docs/export.md).

It gives what an export lacks: methods that act while images are rendered, and models that are no pipeline yet.
"""

from pathlib import Path
from typing import Any

from PIL import Image
from pydantic import ValidationError

from safetydpo.config.loading import read_config
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.export.request import parts_of
from safetydpo.methods.external import external_pipeline
from safetydpo.methods.opening import open_method
from safetydpo.methods.registry import method_of
from safetydpo.models.pipeline import native_size
from safetydpo.models.sampling import render

# Of a model that no run says how to render: steps and guidance as eval-unlearn's own techniques have them.
DEFAULTS = {"num_inference_steps": 50, "guidance_scale": 7.5, "batch_size": 1}


class Technique:
    """What eval-unlearn calls: made with the `config` of a technique, then asked for images.

    run, method: a method of a run, rendered as the run renders it; or model_id: a model of docs/brought-models.md, and
    base: the pipeline that it is put on where it is none itself. seed: of the first image, where eval-unlearn gives
    none; erase_concept: read by eval-unlearn alone; settings: keys of the config's section `model` that are to differ.
    Raises SafetyDPOError where there is no such model, or a key is none.
    """

    def __init__(
        self,
        run: str | None = None,
        method: str | None = None,
        model_id: str | None = None,
        base: str | None = None,
        seed: int = 0,
        erase_concept: str | None = None,
        **settings: Any,
    ) -> None:
        del erase_concept
        if bool(model_id) == bool(run) or bool(run) != bool(method) or (base and not model_id):
            raise SafetyDPOError("The technique safetydpo takes either run and method, or model_id and perhaps base.")
        self.seed = seed
        opened = _of_run(Path(run), str(method), settings) if run else _of_model(str(model_id), base, settings)
        self.pipeline, self.model = opened

    def generate(self, prompts: list[str], seed: int | None = None) -> list[Image.Image]:
        """An image of each prompt, on seeds that count up from `seed`; without one, on from the last call's."""
        first = self.seed if seed is None else seed
        if seed is None:
            self.seed += len(prompts)
        seeds = range(first, first + len(prompts))
        return [Image.fromarray(pixels) for pixels in render(self.pipeline, prompts, seeds, self.model)]


def _of_run(run: Path, name: str, settings: dict[str, Any]) -> tuple[Any, Model]:
    """The pipeline of a run's method, and how it renders."""
    config, method = read_config(run / "config.yaml"), method_of(name)
    model = _checked(config.model.model_dump() | settings)
    weights, scale = parts_of(config, run, method)
    return open_method(name, model, config.baselines, weights, scale), model


def _of_model(path: str, base: str | None, settings: dict[str, Any]) -> tuple[Any, Model]:
    """The pipeline of a model, rendered in its own size where none is given."""
    if not base and Path(path).exists() and not (Path(path) / "model_index.json").is_file():
        raise SafetyDPOError(f"{path} is no whole pipeline: give the one that it is put on, as base.")
    values = {"id": base or path} | DEFAULTS
    size = dict.fromkeys(("height", "width"), 1024)  # until the model is there to say its own
    pipeline = external_pipeline(_checked(values | size | settings), path)
    if not size.keys() <= settings.keys():
        size = dict(zip(size, native_size(pipeline), strict=True))
    return pipeline, _checked(values | size | settings)


def _checked(values: dict[str, Any]) -> Model:
    """The section `model` of these values."""
    try:
        return Model.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise SafetyDPOError(f"Wrong in the config of the technique safetydpo, {wrong}.") from None
