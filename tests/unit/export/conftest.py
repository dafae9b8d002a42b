"""A run folder of a tiny model with what its exports need."""

import json

import pytest
import torch
import yaml
from snakes import ROOT
from tiny import make_pipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from safetydpo.config.loading import load_config
from safetydpo.export.request import Asked
from safetydpo.methods.opening import open_method
from safetydpo.methods.registry import method_of
from safetydpo.models.index import Index
from safetydpo.models.lora import save_factors
from safetydpo.models.pipeline import load_network
from safetydpo.models.sampling import render

METHOD, SCALE, RANK = "merged-co-merge", 1.5, 2
VALUES = yaml.safe_load((ROOT / "config/config.yaml").read_text())


def factors_on(network, targets):
    """Factors of every layer that the family's LoRA sits on; strong enough to be seen in an image."""
    draw = torch.Generator().manual_seed(5)
    layers = [name for name, _ in network.named_modules() if name.endswith(tuple(f".{end}" for end in targets))]
    weights = {name: network.get_submodule(name).weight for name in layers}
    return {
        name: (
            torch.randn(RANK, w.shape[1], generator=draw) / w.shape[1] ** 0.5,
            2 * torch.randn(w.shape[0], RANK, generator=draw),
        )
        for name, w in weights.items()
    }


def as_published(folder, family):
    """What tells text encoders apart in published models: SD 2's is OpenCLIP's, XL's and SD3's two are of different
    widths, and SD3's first does not project.
    """
    if family == "sd21":
        config = folder / "text_encoder/config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_act": "gelu"}))
    if family == "sdxl":
        for part, width in (("text_encoder", 8), ("text_encoder_2", 24)):
            kind = CLIPTextModelWithProjection if part[-1] == "2" else CLIPTextModel
            config = CLIPTextConfig.from_pretrained(folder, subfolder=part)
            config.hidden_size, config.hidden_act = width, "gelu" if part[-1] == "2" else "quick_gelu"
            kind(config).save_pretrained(folder / part)
    if family.startswith("sd3"):
        for part, width in (("text_encoder", 8), ("text_encoder_2", 24)):
            config = CLIPTextConfig.from_pretrained(folder, subfolder=part)
            config.hidden_size = config.projection_dim = width
            encoder = CLIPTextModelWithProjection(config)
            if width == 8:
                torch.nn.init.eye_(encoder.text_projection.weight)
            encoder.save_pretrained(folder / part)


class Run:
    """A folder results/tiny with the merged LoRA of METHOD, tuned to SCALE."""

    def __init__(self, folder, family, **changes):
        self.model = make_pipeline(folder / "model", family)
        as_published(folder / "model", family)
        values = VALUES | {"run": "tiny", "results": str(folder / "results"), "model": self.model.model_dump()}
        self.config = load_config(values | changes)
        self.folder = folder / "results/tiny"
        kind = Index(self.model).family.kind
        self.component = kind.component
        self.network = load_network(self.model).network
        self.factors = factors_on(self.network, kind.targets)
        self.weights = self.folder / method_of(METHOD).weights
        save_factors(self.factors, self.weights.parent, kind.component, {})
        (self.folder / "tuning").mkdir()
        (self.folder / f"tuning/{METHOD}.json").write_text(json.dumps({"scale": SCALE}))
        (self.folder / "config.yaml").write_text(yaml.safe_dump(self.config.model_dump(mode="json")))

    def asked(self, rank=None, dtype=None):
        return Asked(self.config, self.folder, method_of(METHOD), self.weights, SCALE, rank, dtype)

    def image(self, pipeline=None):
        """Pixels of a prompt and seed, by the workflow's own way, or by a pipeline that was loaded otherwise."""
        if pipeline is None:
            pipeline = open_method(METHOD, self.model, self.config.baselines, self.weights, SCALE)
        pipeline.family = Index(self.model).family
        pipeline.set_progress_bar_config(disable=True)
        return next(render(pipeline, ["a red circle"], [3], self.model)).astype(int)

    def base_image(self):
        return self.image(open_method("base", self.model, self.config.baselines))


@pytest.fixture(scope="session")
def run_of(tmp_path_factory):
    """Family -> its run; made once, tests leave it as it is."""
    made = {}

    def run(family):
        if family not in made:
            made[family] = Run(tmp_path_factory.mktemp(family), family)
        return made[family]

    return run
