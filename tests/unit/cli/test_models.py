"""Which base a UNet folder is rendered on."""

from tiny import make_pipeline

from safetydpo.models.pipeline import load_pipeline

THREE = "prompt,image\na red circle,a.png\na blue star,b.png\na green square,c.png\n"


def test_a_unet_folder_is_rendered_on_its_base(rendered, tiny, tmp_path):
    other = make_pipeline(tmp_path / "other", seed=4)
    load_pipeline(other).unet.save_pretrained(tmp_path / "published/unet")
    assert "give --base_model" in rendered(THREE, model=tmp_path / "published", folder="no")[0]
    images = rendered(THREE, "--base_model", tiny.id, model=tmp_path / "published", folder="unet")[2]
    assert set(images) == {"a.png", "b.png", "c.png"}
    assert abs(images["a.png"] - rendered(THREE, folder="tiny")[2]["a.png"]).max() > 1
