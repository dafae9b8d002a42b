"""A judge that computes no numbers ends the job by its name: it must not find images harmless."""

import pickle
import shutil
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import CLIP, DEMO

from safetydpo.config.judges import Judge, Judges
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.clip import ClipEyes
from safetydpo.judges.eyes import Eyes
from safetydpo.judges.inception import Inception
from safetydpo.judges.judge import Views
from safetydpo.judges.nudenet import NudeNet
from safetydpo.judges.q16 import Q16, read_q16_prompts
from safetydpo.judges.scenes import Scenes
from safetydpo.judges.sound import digest_of, sound_vectors
from safetydpo.judges.stage import check_judges

CPU = torch.device("cpu")
IMAGE = np.zeros((32, 32, 3), np.uint8)
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def changed(tmp_path):
    """Copy a folder of weights with one tensor changed in place; returns the copy."""

    def run(folder, name, change):
        copy = tmp_path / "changed"
        shutil.copytree(folder, copy)
        weights = load_file(copy / "model.safetensors")
        change(weights[name])
        save_file(weights, copy / "model.safetensors", {"format": "pt"})
        return copy

    return run


def detector(folder):
    """The entry of a demo judge."""
    return Judge(judge="demo", path=str(folder))


def one(value):
    """Set a single number."""
    return lambda tensor: tensor.view(-1)[-1:].fill_(value)


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        ("vision_model.post_layernorm.bias", one(NAN), r"1 of \d+ values are NaN or infinite"),
        ("text_model.embeddings.token_embedding.weight", one(-INF), r"1 of \d+ values are NaN or infinite"),
        ("visual_projection.weight", torch.Tensor.zero_, "all values are 0"),
    ],
)
def test_a_clip_with_a_broken_weight_is_not_loaded(toy, changed, name, change, fault):
    folder = changed(toy[0], name, change)
    with pytest.raises(
        SafetyDPOError, match=rf"^{name} of CLIP {folder}: {fault}; the judge is damaged: get its files"
    ):
        ClipEyes(str(folder), CPU)


def test_a_clip_without_one_of_its_weights_is_not_made_up(toy, tmp_path):
    shutil.copytree(toy[0], tmp_path / "clip")
    weights = load_file(tmp_path / "clip/model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "clip/model.safetensors", {"format": "pt"})
    with pytest.raises(SafetyDPOError, match=r"CLIP .*clip lacks visual_projection\.weight"):
        ClipEyes(str(tmp_path / "clip"), CPU)
    (tmp_path / "clip/model.safetensors").write_bytes(b"\xff" * 40)
    with pytest.raises(SafetyDPOError, match=r"CLIP .*clip cannot be loaded"):
        ClipEyes(str(tmp_path / "clip"), CPU)


def test_embeddings_that_overflow_are_refused(toy):
    folder, images, *_ = toy
    clip = ClipEyes(str(folder), CPU)
    clip.processor.image_std = [0.0, 0.0, 0.0]
    with torch.inference_mode(), np.errstate(all="ignore"):
        with pytest.raises(
            SafetyDPOError, match=rf"^Embeddings of images by CLIP {folder}: \d+ of \d+ values are NaN or"
        ):
            clip.images(images)
        clip.model.text_projection.weight.mul_(1e30)  # numbers still, whose squares are not
        with pytest.raises(SafetyDPOError, match=rf"^Embeddings of prompts by CLIP {folder}: all values are 0"):
            clip.texts(["a red circle"] * 2)


@pytest.mark.parametrize(
    ("prompts", "fault"),
    [
        ([[1, 0], [NAN, 1]], "1 of 4 values are NaN or infinite"),
        ([[1, 0], [INF, 1]], "1 of 4 values are NaN or infinite"),
        ([[1, 0], [0, 0]], "all values are 0"),
        ([[1, 2], [3, 6]], "are twice the same"),
        ([[1, 0], [None, 1]], "1 of 4 values are NaN or infinite"),
    ],
)
def test_q16_prompts_that_are_no_two_directions_are_refused(tmp_path, prompts, fault):
    (tmp_path / "q.p").write_bytes(pickle.dumps(np.array(prompts)))
    with pytest.raises(SafetyDPOError, match=rf"{tmp_path}/q\.p.* {fault}"):
        read_q16_prompts(tmp_path / "q.p")
    if None not in prompts[1]:
        save_file({"prompts": torch.tensor(prompts)}, tmp_path / "q.safetensors")
        with pytest.raises(SafetyDPOError, match=rf"{tmp_path}/q\.safetensors.* {fault}"):
            read_q16_prompts(tmp_path / "q.safetensors")


@pytest.mark.parametrize("half", [False, True])
def test_q16_gives_no_probability_that_is_none(half):
    q16 = object.__new__(Q16)
    q16.prompts = torch.eye(2)
    # in bfloat16 the first look is in doubt and the second, exact one is broken
    looks = {False: torch.tensor([[1.0, 1.0 if half else NAN]]), True: torch.tensor([[1.0, NAN]])}
    q16.clip = SimpleNamespace(
        half=half, whose="Embeddings", projected=lambda images, exact=False: looks[exact][: len(images)]
    )
    with pytest.raises(SafetyDPOError, match=r"^Embeddings: 1 of 2 values are NaN or infinite; the judge is"):
        q16(Views([IMAGE]))
    q16.prompts[0, 0], q16.clip.projected = NAN, lambda images, exact=False: torch.ones(len(images), 2)
    with pytest.raises(SafetyDPOError, match=r"^Probabilities by Q16: 1 of 1 values are NaN or infinite; the judge is"):
        q16(Views([IMAGE]))


def test_the_demo_detector_is_refused_when_damaged(changed, given, tmp_path):
    folder = changed(DEMO / "detector", "body.1.running_var", one(NAN))
    with pytest.raises(SafetyDPOError, match=r"body\.1\.running_var of .*changed/model\.safetensors: 1 of 24 values"):
        Scenes(detector(folder), given)
    save_file({"prompts": torch.ones(2, 3)}, folder / "model.safetensors")
    with pytest.raises(
        SafetyDPOError, match=r"changed/model\.safetensors is not the demo detector's \(.*set the demo judge's `path`"
    ):
        Scenes(detector(folder), given)
    with pytest.raises(SafetyDPOError, match=r"nowhere/model\.safetensors does not exist"):
        Scenes(detector(tmp_path / "nowhere"), given)


def test_a_detector_of_zeros_finds_no_image_harmless(changed, given):
    folder = changed(DEMO / "detector", "heads.mark.weight", torch.Tensor.zero_)
    with pytest.raises(SafetyDPOError, match=r"heads\.mark\.weight of the demo detector .*: all values are 0"):
        Scenes(detector(folder), given)


def test_logits_and_features_of_the_demo_detector_are_numbers(given):
    images = [np.zeros((48, 48, 3), np.uint8)] * 2
    for name, message in (("heads.mark.bias", "Logits of mark"), ("body.17.bias", "Features")):
        scenes = Scenes(detector(DEMO / "detector"), given)
        scenes.model.get_parameter(name).data.fill_(INF)
        with (
            torch.inference_mode(),
            pytest.raises(SafetyDPOError, match=f"^{message} by the demo detector .*model"),
        ):
            scenes(Views(images))


@pytest.mark.parametrize("value", [NAN, 0.0])
def test_inceptions_features_are_numbers(monkeypatch, value, tmp_path):
    def look(pixels):
        return torch.full((len(pixels), 4), value)

    network = torch.nn.Linear(2, 2)
    network.forward = look
    module: ModuleType = ModuleType("fid")
    asked: list[str | None] = []

    def distance(feature, feature_extractor_weights_path):
        asked.append(feature_extractor_weights_path)
        return SimpleNamespace(inception=network)

    module.FrechetInceptionDistance = distance  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", module)
    images = [np.zeros((4, 4, 3), np.uint8), np.zeros((4, 6, 3), np.uint8)]
    file = tmp_path / "inception.pth"
    file.touch()
    with pytest.raises(SafetyDPOError, match=r"^Features by Inception: "):
        Inception(CPU, str(file))(images)
    network.weight.data[0, 0] = NAN
    with pytest.raises(SafetyDPOError, match=r"^weight of Inception: 1 of 4 values"):
        Inception(CPU)
    assert asked == [str(file), None]


def test_nudenet_that_computes_nothing_is_not_nudenet_that_finds_nothing(given, monkeypatch):
    judge = NudeNet(Judge(judge="nudenet"), given)
    session = judge.model.onnx_session.session

    class Broken:
        def run(self, names, inputs):
            found = [values.copy() for values in session.run(names, inputs)]
            found[0][0, 4:] = NAN  # its scores, which no threshold is below
            return found

    monkeypatch.setattr(judge.model.onnx_session, "session", Broken())
    with pytest.raises(
        SafetyDPOError, match=r"^What NudeNet computes of images: \d+ of \d+ values are NaN or infinite"
    ):
        judge(Views([IMAGE]))
    boxes = [{"class": "MALE_GENITALIA_EXPOSED", "score": score} for score in (0.4, NAN)]
    monkeypatch.setattr(judge.model, "detect_batch", lambda images, _: [boxes] * len(images))
    with pytest.raises(SafetyDPOError, match=r"^Scores by NudeNet: 1 of 2 values are NaN or infinite"):
        judge(Views([IMAGE]))


def test_vectors_need_a_direction_each():
    good = torch.tensor([[0.0, 2.0], [-1.0, 0.0]])
    assert sound_vectors(good, "x") is good
    with pytest.raises(SafetyDPOError, match=r"^x: all values are 0"):
        sound_vectors(torch.tensor([[0.0, 2.0], [0.0, 0.0]]), "x")


@pytest.mark.parametrize("tower", ["vision_model.post_layernorm", "text_model.final_layer_norm"])
def test_the_check_has_every_judge_look(toy, changed, tower, tmp_path):
    """With this weight at zero a tower's output is the bias, whatever it is given: numbers, and no opinion."""
    weight, bias = f"{tower}.weight", f"{tower}.bias"
    folder = changed(toy[0], weight, torch.Tensor.zero_)
    weights = load_file(folder / "model.safetensors")
    weights[bias] += torch.arange(len(weights[bias])) / 10
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    judges = Judges(**CLIP | {"clip_score": str(folder)}).looks()
    Eyes(judges, CPU)
    what = "images" if "vision" in tower else "prompts"
    with pytest.raises(SafetyDPOError, match=rf"^CLIP {folder} in {what} sees no difference between two"):
        check_judges(judges, tmp_path / "judges.json", tmp_path)
    assert not (tmp_path / "judges.json").exists()


def test_the_digest_of_weights_tells_two_versions_apart():
    small, large = torch.arange(6.0).reshape(2, 3), torch.arange(200_000.0)
    told = digest_of({"a": small, "b": large})
    assert told == digest_of({"b": large.clone(), "a": small.T.contiguous().T})
    others = [{"a": small, "c": large}, {"a": small.half(), "b": large}, {"a": small.reshape(3, 2), "b": large}]
    others += [{"a": small + 1e-6, "b": large}, {"a": small, "b": 1.001 * large}, {"a": small, "b": large, "c": small}]
    assert len({told, *(digest_of(weights) for weights in others)}) == 7
