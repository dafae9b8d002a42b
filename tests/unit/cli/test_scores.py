"""The published test.py: flags, files, printed scores, and what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from snakes import ROOT

from safetydpo.cli import scores_main
from safetydpo.demo.scenes import Scene, draw
from safetydpo.evaluation.statistics import fid
from safetydpo.judges.clip import ClipEyes

DEMO = ROOT / "resources/demo"
CLIP = ["--clip_model", str(DEMO / "clip"), "--q16_clip", str(DEMO / "clip")]
Q16 = ["--q16_prompts", str(DEMO / "q16.safetensors"), "--detector", "none"]


def called(main, capsys, *args):
    """Exit status (or its sentence) and what was printed."""
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in args])
    return ended.value.code, capsys.readouterr().out


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
