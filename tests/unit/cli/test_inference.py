"""The published inference.py: flags, files, seeds, printed lines, and what is refused."""

import json
import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tiny import make_pipeline

from safetydpo.cli.inference import arguments, read_prompts, run, starting_noise
from safetydpo.errors import SafetyDPOError
from safetydpo.models.index import Index
from safetydpo.models.pipeline import load_pipeline

THREE = "prompt,image\na red circle,a.png\na blue star,b.png\na green square,c.png\n"


def by_hand(tiny, prompt, generator):
    """One image through the plain pipeline."""
    options = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 16, "width": 16, "output_type": "np"}
    noise = torch.randn((1, 4, 8, 8), generator=generator)
    return (load_pipeline(tiny)(prompt, latents=noise, **options).images[0] * 255).round().astype(int)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_without_seeds_one_generator_goes_on_row_by_row(rendered, tiny):
    status, said, images = rendered(THREE, "--batch_size", "2")
    assert (status, "3 images written to" in said) == (0, True)
    generator = seeded(0)
    for name, prompt in (("a.png", "a red circle"), ("b.png", "a blue star"), ("c.png", "a green square")):
        assert abs(images[name] - by_hand(tiny, prompt, generator)).max() <= 1


def test_what_is_there_is_not_rendered_again_and_the_rest_is_as_before(rendered, tmp_path):
    _, _, before = rendered(THREE)
    (tmp_path / "out/b.png").unlink()
    (tmp_path / "out/a.png").write_bytes((tmp_path / "out/c.png").read_bytes())
    status, said, after = rendered(None)
    assert (status, "1 images written" in said, "2 were there already" in said) == (0, True, True)
    assert abs(after["b.png"] - before["b.png"]).max() <= 1
    assert (after["a.png"] == before["c.png"]).all()
    assert "3 images are in" in rendered(None)[1]
    assert abs(rendered(None, "--overwrite")[2]["a.png"] - before["a.png"]).max() <= 1


def test_seeds_of_the_file_or_of_the_row_number(rendered, tiny):
    images = rendered("prompt,image,evaluation_seed\r\na red circle,a.png,5000000000\r\n")[2]
    assert abs(images["a.png"] - by_hand(tiny, "a red circle", seeded(5000000000))).max() <= 1
    images = rendered(THREE, "--seed-per-row", folder="rows")[2]
    assert abs(images["c.png"] - by_hand(tiny, "a green square", seeded(2))).max() <= 1


def test_files_without_image_names_and_parquet_are_read(rendered, tmp_path):
    rows = '"a red\ncircle",hate,1\n ,hate,\na star,hate,2\n'
    _, said, images = rendered(f"prompt,categories,sd_seed\n{rows}")
    assert list(images) == ["0000000.png", "0000002.png"]
    assert "1 rows without a prompt skipped" in said
    pd.DataFrame({"prompt": ["a star"], "image": ["deep/er.png"]}).to_parquet(tmp_path / "p.parquet")
    assert list(rendered(None, folder="other", name="p.parquet")[2]) == ["er.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,image\na,../x.png\n", "the image name '../x.png' is not inside"),
        ("prompt,image\na,/tmp/x.png\n", "the image name '/tmp/x.png' is not inside"),
        ("prompt,image\na,\n", "the image name '' is not inside"),
        ("prompt,image,evaluation_seed\na,x.png,1\nb,x.png,1\n", "rows 1, 2 share the image name x.png"),
        ("prompt,image,evaluation_seed\na,x.png,1\na,x.png,2\n", "rows 1, 2 share the image name x.png"),
        ("prompt,image,evaluation_seed\na,x.png,\na,x.png,\n", "rows 1, 2 share the image name x.png"),
        ("prompt,image,evaluation_seed\na,x.png,one\n", "the seed 'one': it must be a whole number"),
        ("prompt,image,evaluation_seed\na,x.png,1.7\n", "the seed '1.7': it must be a whole number"),
        (
            "prompt,evaluation_seed\na,18446744073709551616\n",
            "'18446744073709551616': it must be a whole number from 0",
        ),
        ("prompt,evaluation_seed\na,-1\n", "the seed '-1': it must be a whole number from 0"),
        (f"prompt,image\na,{'x' * 252}\n", "is none that a file can have"),
        ("prompt\n \n", "has no prompt in its column `prompt`"),
        ("text,image\na,x.png\n", "has no column `prompt`; it has text, image"),
    ],
)
def test_prompts_that_will_not_do_are_said(rendered, text, message):
    assert message in rendered(text)[0]


def test_a_parquet_column_that_holds_no_text_is_said_before_the_model_is_loaded(rendered, tmp_path):
    cells = pa.array([{"bytes": b"x", "path": None}])
    for table in ({"prompt": ["a star"], "image": cells}, {"prompt": cells}):
        pq.write_table(pa.table(table), tmp_path / "p.parquet")
        said, _, _ = rendered(None, name="p.parquet", model=tmp_path / "no-model")
        assert "holds struct<bytes: binary, path: null>, not text" in said


def test_rows_without_a_seed_beside_rows_with_one(tmp_path):
    pq.write_table(pa.table({"prompt": ["a", "b", "c"], "seed": [7, None, 2**40 + 1]}), tmp_path / "p.parquet")
    rows = read_prompts(str(tmp_path / "p.parquet"), tmp_path)
    shape, one, cpu = (1, 4, 8, 8), seeded(0), torch.device("cpu")
    _, second = torch.randn(shape, generator=one), torch.randn(shape, generator=one)
    expected = [torch.randn(shape, generator=seeded(7)), second, torch.randn(shape, generator=seeded(2**40 + 1))]
    assert all(map(torch.equal, starting_noise(rows, 3, shape, cpu), expected))
    assert torch.equal(next(starting_noise(rows[1:], 3, shape, cpu)), second)


def test_a_file_with_semicolons_and_spaces_is_read_by_its_names(tmp_path):
    (tmp_path / "p.csv").write_text('prompt; image ;seed\n"a red star; small"; x.png ; 7\n')
    row = read_prompts(str(tmp_path / "p.csv"), tmp_path).iloc[0]
    assert (row.prompt, row.file.name, row.seed) == ("a red star; small", "x.png", 7)


def test_a_name_that_no_file_can_have_is_said(tmp_path):
    pq.write_table(pa.table({"prompt": ["a"], "image": ["x\0.png"]}), tmp_path / "p.parquet")
    with pytest.raises(SafetyDPOError, match="is none that a file can have"):
        read_prompts(str(tmp_path / "p.parquet"), tmp_path)


@pytest.mark.parametrize("name", ["a.mpg", "a.ico", "a.pdf", "a.xbm", "a.h5", "a.txt", "a"])
def test_names_of_kinds_that_cannot_hold_the_image_get_a_suffix(tmp_path, name):
    (tmp_path / "p.csv").write_text(f"prompt,image\nx,{name}\ny,b.JPG\n")
    files = read_prompts(str(tmp_path / "p.csv"), tmp_path).file
    assert [file.name for file in files] == [f"{name}.png", "b.JPG"]


def test_flags_that_will_not_do_are_said(rendered, tmp_path):
    for flag, value in (("--batch_size", "0"), ("--num_inference_steps", "1.5"), ("--image_size", "-8")):
        assert rendered(THREE, flag, value)[0] == f"{flag} must be a whole number of at least 1, not {value!r}."
    assert rendered(THREE, "--guidance_scale", "nan")[0] == "--guidance_scale must be a number, not nan."
    assert "The device is mps, but torch sees no mps here" in rendered(THREE, "--device", "mps")[0]
    (tmp_path / "file").touch()
    assert "cannot hold images (File exists): give another folder" in rendered(THREE, folder="file")[0]


def test_the_models_own_size_may_have_two_sides(rendered, tiny, tmp_path):
    shutil.copytree(tiny.id, tmp_path / "wide")
    config = json.loads((tmp_path / "wide/unet/config.json").read_text())
    (tmp_path / "wide/unet/config.json").write_text(json.dumps(config | {"sample_size": [8, 12]}))
    assert rendered(THREE, model=tmp_path / "wide")[2]["a.png"].shape == (16, 24, 3)


def test_rows_that_agree_on_an_image_are_rendered_once(rendered):
    status, said, images = rendered("prompt,image,evaluation_seed\na star,x.png,1\na star,x.png,1\n")
    assert (status, list(images)) == (0, ["x.png"])
    assert "1 images written" in said


def command(model, folder, *flags):
    """What the command says, and the image of its one prompt."""
    (folder / "p.csv").write_text("prompt,image\na red circle,a.png\n")
    paths = ["--model_path", str(model), "--prompts_path", str(folder / "p.csv"), "--save_path", str(folder / "out")]
    said, status = run(arguments().parse_args([*paths, "--device", "cpu", "--num_inference_steps", "2", *flags]))
    assert status == 0
    return said, np.asarray(Image.open(folder / "out/a.png")).astype(int)


def plain(model, noise, dtype=torch.float32, **options):
    """The image of that prompt through a pipeline of diffusers' own."""
    pipeline = DiffusionPipeline.from_pretrained(model.id, dtype=dtype, **dict.fromkeys(Index(model).missing))
    size = {"num_inference_steps": 2, "height": 16, "width": 16, "output_type": "np"}
    return (pipeline("a red circle", latents=noise, **size, **options).images[0] * 255).round().astype(int)


NOISE = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
# A token is a patch of 2 x 2: rows of patches, columns of patches, then channel, row and column in the patch.
PACKED = NOISE.view(1, 4, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 16, 16)


@pytest.mark.parametrize(
    ("family", "dtype", "noise", "guidance"),
    [
        ("sd3", torch.float32, NOISE, 3),
        ("flux-dev", torch.bfloat16, PACKED.bfloat16(), 3),
        ("z-image", torch.bfloat16, NOISE, 2),  # its pipeline calls w - 1 the scale, and steps in float32
    ],
)
def test_a_transformer_starts_from_the_commands_noise(tmp_path, family, dtype, noise, guidance):
    model = make_pipeline(tmp_path / "p", family)
    flags = ["--image_size", "16", "--guidance_scale", "3", "--dtype", str(dtype).removeprefix("torch.")]
    _, image = command(model.id, tmp_path, *flags)
    expected = plain(model, noise, dtype, guidance_scale=guidance)
    assert abs(image - expected).max() <= 1
    assert abs(image - plain(model, noise.flip(1), dtype, guidance_scale=guidance)).max() > 1


def test_without_a_guidance_scale_a_unet_has_the_published_one_and_others_their_pipelines(tiny, tmp_path):
    _, image = command(tiny.id, tmp_path, "--image_size", "16")
    assert abs(image - plain(tiny, NOISE, guidance_scale=7.5)).max() <= 1
    model = make_pipeline(tmp_path / "p", "sd3")
    _, image = command(model.id, tmp_path, "--image_size", "16", "--overwrite")
    assert abs(image - plain(model, NOISE)).max() <= 1


def test_a_guidance_scale_that_would_be_ignored_is_refused(tmp_path):
    model = make_pipeline(tmp_path / "p", "flux-schnell")
    with pytest.raises(SafetyDPOError, match=r"guidance_scale is 3\.5, and .* would ignore it: .*Set it to 1"):
        command(model.id, tmp_path, "--guidance_scale", "3.5")
    for flags in ([], ["--guidance_scale", "0", "--overwrite"]):  # as its model card calls it
        assert "1 images written" in command(model.id, tmp_path, "--image_size", "16", *flags)[0]


def test_an_image_size_of_half_a_patch_is_said(tmp_path):
    model = make_pipeline(tmp_path / "p", "sd3")  # a pixel of the latents is 2 of an image, a patch 2 of the latents
    with pytest.raises(SafetyDPOError, match="--image_size 18 must be a multiple of 4"):
        command(model.id, tmp_path, "--image_size", "18")


def test_an_image_size_that_the_vae_cannot_make_is_said(rendered):
    assert "--image_size 17 must be a multiple of 2" in rendered(THREE, "--image_size", "17")[0]
    assert rendered(THREE, "--image_size", "32")[2]["a.png"].shape == (32, 32, 3)
