"""Loading a model: what is taken from where, and what is refused."""

import pytest
from tiny import make_pipeline

from safetydpo.errors import SafetyDPOError
from safetydpo.models.pipeline import load_pipeline, load_unet
from safetydpo.training.denoiser import Denoiser


def test_a_separate_vae_is_the_one_used(tmp_path):
    model = make_pipeline(tmp_path / "p", "sdxl")
    other = load_pipeline(model).vae
    other.register_to_config(scaling_factor=0.5)
    other.save_pretrained(tmp_path / "vae")
    model = model.model_copy(update={"vae": str(tmp_path / "vae")})
    assert load_pipeline(model).vae.config.scaling_factor == 0.5
    assert load_unet(model).scaling_factor == 0.5


def test_training_loads_neither_vae_nor_text_encoders(tmp_path):
    model = make_pipeline(tmp_path / "p", "sdxl")
    for part in ("vae", "text_encoder", "text_encoder_2"):
        for path in (tmp_path / "p" / part).glob("*.safetensors"):
            path.unlink()
    assert Denoiser(model).unet.num_parameters() > 0


def test_a_model_without_unet_or_with_pickles_is_refused(tmp_path):
    model = make_pipeline(tmp_path / "p")
    weights = next((tmp_path / "p/unet").glob("*.safetensors"))
    pickle = weights.rename(weights.with_suffix(".bin"))
    for load in (load_pipeline, load_unet):
        with pytest.raises(SafetyDPOError, match=r"unet/diffusion_pytorch_model\.bin is a pickle.*save_pretrained"):
            load(model)
    pickle.unlink()
    with pytest.raises(SafetyDPOError, match="cannot be loaded"):
        load_unet(model)
    index = tmp_path / "p/model_index.json"
    index.write_text(index.read_text().replace('"unet"', '"transformer"'))
    with pytest.raises(SafetyDPOError, match=r"has no UNet \(StableDiffusionPipeline\)"):
        load_unet(model)
