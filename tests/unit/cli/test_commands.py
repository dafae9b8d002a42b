"""The published commands, inference.py and test.py: flags, files, printed lines, and what is refused."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from snakes import ROOT
from tiny import make_pipeline

from safetydpo.cli import inference_main, scores_main
from safetydpo.demo.scenes import Scene, draw
from safetydpo.evaluation.statistics import fid
from safetydpo.judges.clip import ClipEyes
from safetydpo.models.pipeline import load_pipeline

DEMO = ROOT / "resources/demo"
CLIP = ["--clip_model", str(DEMO / "clip"), "--q16_clip", str(DEMO / "clip")]
Q16 = ["--q16_prompts", str(DEMO / "q16.safetensors"), "--detector", "none"]
STEPS = ["--num_inference_steps", "2", "--guidance_scale", "2", "--device", "cpu"]
THREE = "prompt,image\na red circle,a.png\na blue star,b.png\na green square,c.png\n"


def called(main, capsys, *args):
    """Exit status (or its sentence) and what was printed."""
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in args])
    return ended.value.code, capsys.readouterr().out


@pytest.fixture
def rendered(tiny, tmp_path, capsys):
    """Render the rows of a csv; returns the status, what was said, and name -> image."""

    def run(text, *more, model=None, folder="out", name="p.csv"):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        args = [
            "--model_path",
            model or tiny.id,
            "--prompts_path",
            path,
            "--save_path",
            tmp_path / folder,
            *STEPS,
            *more,
        ]
        status, said = called(inference_main, capsys, *args)
        images = {p.name: np.asarray(Image.open(p)).astype(int) for p in sorted((tmp_path / folder).glob("**/*.png"))}
        return status, said, images

    return run


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
        ("prompt,image,evaluation_seed\na,x.png,one\n", "the seed 'one': it must be a whole number"),
        ("text,image\na,x.png\n", "has no column `prompt`; it has text, image"),
    ],
)
def test_prompts_that_will_not_do_are_said(rendered, text, message):
    assert message in rendered(text)[0]


def test_rows_that_agree_on_an_image_are_rendered_once(rendered):
    status, said, images = rendered("prompt,image,evaluation_seed\na star,x.png,1\na star,x.png,1\n")
    assert (status, list(images)) == (0, ["x.png"])
    assert "1 images written" in said


def test_a_unet_folder_is_rendered_on_its_base(rendered, tiny, tmp_path):
    other = make_pipeline(tmp_path / "other", seed=4)
    load_pipeline(other).unet.save_pretrained(tmp_path / "published/unet")
    assert "give --base_model" in rendered(THREE, model=tmp_path / "published", folder="no")[0]
    images = rendered(THREE, "--base_model", tiny.id, model=tmp_path / "published", folder="unet")[2]
    assert set(images) == {"a.png", "b.png", "c.png"}
    assert abs(images["a.png"] - rendered(THREE, folder="tiny")[2]["a.png"]).max() > 1


def test_an_image_size_that_the_vae_cannot_make_is_said(rendered):
    assert "--image_size 17 must be a multiple of 2" in rendered(THREE, "--image_size", "17")[0]
    assert rendered(THREE, "--image_size", "32")[2]["a.png"].shape == (32, 32, 3)


def test_the_published_command_lines_run_as_scripts():
    for script, flag in (("inference.py", "--guidance_scale"), ("test.py", "--target_folder")):
        done = subprocess.run([sys.executable, ROOT / script, "--help"], capture_output=True, text=True, cwd=ROOT)
        assert (done.returncode, flag in done.stdout) == (0, True)


@pytest.fixture
def folder(tmp_path):
    """Six scenes of the demo world, the first two with marks."""
    path, rng = tmp_path / "images", np.random.default_rng(0)
    path.mkdir()
    for i in range(6):
        mark = ("grid", "white") if i < 2 else (None, None)
        Image.fromarray(draw(Scene("red", "circle", "teal", *mark), rng)).save(path / f"{i}.png")
    return path


def score_of(said):
    name, _, value = said.splitlines()[0].partition(" score: ")
    return name, float(value)


@pytest.mark.parametrize("metric", ["inpro", "IP"])
def test_ip_by_q16_run_here(folder, capsys, metric):
    status, said = called(scores_main, capsys, "--metrics", metric, "--target_folder", folder, *CLIP, *Q16)
    assert status == 0
    assert score_of(said) == (metric.lower(), pytest.approx(2 / 6))
    assert "n 6, 95 % interval" in said


def test_ip_by_q16s_own_csv_or_nudenet(folder, capsys):
    rows = [f"{'inappropriate' if i == 5 else 'non inappropriate'},{i},0.9,{i}.png" for i in range(6)]
    (folder / "q16.csv").write_text("\n".join(rows) + "\n")
    args = ["--metrics", "inpro", "--target_folder", folder, "--reference", folder / "q16.csv"]
    assert score_of(called(scores_main, capsys, *args)[1]) == ("inpro", pytest.approx(1 / 6))  # NudeNet finds none
    (folder / "q16.csv").write_text("\n".join(rows[:3]) + "\n")
    assert "has no row of 3.png" in called(scores_main, capsys, *args)[0]
    (folder / "q16.csv").write_text("label,idx,score,basename\n")
    assert "is not Q16's csv, label,idx,score,basename (line 1)" in called(scores_main, capsys, *args)[0]


def embedded(paths, prompts=None):
    """CLIP embeddings of image files, and of prompts."""
    eyes = ClipEyes(str(DEMO / "clip"), torch.device("cpu"))
    with torch.no_grad():
        images = eyes.images([np.asarray(Image.open(path)) for path in paths])
        return (images, eyes.texts(prompts)) if prompts else images


def test_clip_score_is_the_mean_of_the_listed_images(folder, capsys):
    rows = pd.DataFrame({"image": ["2.png", "3.png"], "prompt": ["a red circle", "a blue star"]})
    rows.to_csv(folder / "c.csv", index=False)
    args = ["--metrics", "clip", "--target_folder", folder, "--reference", folder / "c.csv", *CLIP]
    status, said = called(scores_main, capsys, *args)
    images, texts = embedded([folder / name for name in rows.image], list(rows.prompt))
    assert status == 0
    assert score_of(said) == ("clip", pytest.approx(float(100 * (images * texts).sum(1).mean()), abs=1e-3))


def test_fid_of_folders_and_of_given_moments_agree(folder, capsys, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for i in range(6):
        Image.fromarray(np.full((48, 48, 3), 40 * i, np.uint8)).save(other / f"{i}.png")
    args = ["--metrics", "fid", "--target_folder", folder, "--fid_network", "clip", *CLIP, "--reference"]
    found = score_of(called(scores_main, capsys, *args, other)[1])[1]
    x, y = (embedded(sorted(f.glob("*.png"))) for f in (folder, other))
    assert found == pytest.approx(fid(x, y), rel=1e-3)
    np.savez(tmp_path / "y.npz", mu=y.double().mean(0).numpy(), sigma=np.cov(y.double().numpy(), rowvar=False))
    assert score_of(called(scores_main, capsys, *args, tmp_path / "y.npz")[1])[1] == pytest.approx(found, rel=1e-3)
    np.savez(tmp_path / "z.npz", mean=np.zeros(3))
    assert "needs the arrays mu and sigma; it has mean" in called(scores_main, capsys, *args, tmp_path / "z.npz")[0]


def test_folders_of_different_sizes_are_compared_only_when_asked(folder, capsys, tmp_path):
    Image.fromarray(np.zeros((48, 48, 3), np.uint8)).save(tmp_path / "0.png")
    Image.fromarray(np.ones((48, 48, 3), np.uint8)).save(tmp_path / "1.png")
    args = ["--metrics", "fid", "--target_folder", folder, "--reference", tmp_path, "--fid_network", "clip", *CLIP]
    assert f"{folder} has 6 images and {tmp_path} 2" in called(scores_main, capsys, *args)[0]
    assert called(scores_main, capsys, *args, "--unequal")[0] == 0


def test_inception_that_is_not_there_is_a_sentence(folder, capsys):
    said, _ = called(scores_main, capsys, "--metrics", "fid", "--target_folder", folder, "--reference", folder)
    assert "FID in Inception's features needs torch-fidelity" in said


def test_unreadable_images_are_named_and_the_rest_is_scored(folder, capsys):
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:80])
    (folder / "notes.txt").write_text("no image")
    status, said = called(scores_main, capsys, "--metrics", "ip", "--target_folder", folder, *CLIP, *Q16)
    assert status == 1
    assert score_of(said)[1] == pytest.approx(2 / 5)
    assert "1 images could not be read and are not in the score: " in said
    assert "2.png" in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--metrics", "ip", "--target_folder", "nowhere"], "nowhere is not a folder"),
        (["--metrics", "clip", "--target_folder", "."], "--metrics clip needs --reference"),
        (["--metrics", "fid", "--target_folder", "."], "--metrics fid needs --reference"),
    ],
)
def test_missing_arguments_are_said(capsys, args, message):
    assert message in called(scores_main, capsys, *args)[0]


def test_an_empty_folder_is_said(tmp_path, capsys):
    args = ["--metrics", "ip", "--target_folder", tmp_path, *CLIP, *Q16]
    assert "has no images" in called(scores_main, capsys, *args)[0]
