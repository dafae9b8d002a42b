"""Image classifiers: whose probabilities are which columns, and what cannot be a judge."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.special import expit, softmax
from tiny import NO_GPU
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

from safetydpo.config.judges import Judge
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.classifier import ImageClassifier
from safetydpo.judges.judge import Views

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(low, low + 60, (32, 32, 3), dtype=np.uint8) for low in (0, 100, 190)]


@pytest.fixture(scope="session")
def vit(tmp_path_factory):
    """Make a folder of a random ViT of images of 32 x 32 with these labels."""

    def make(*labels, **changes):
        folder, size = tmp_path_factory.mktemp("vit"), {"image_size": 32, "patch_size": 8, "hidden_size": 16}
        layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
        config = ViTConfig(**size, **layers, id2label=dict(enumerate(labels)), **changes)
        torch.manual_seed(1)
        model = ViTForImageClassification(config)
        with torch.no_grad():
            model.classifier.weight.mul_(30)
            model.vit.embeddings.patch_embeddings.projection.weight.mul_(10)
        model.save_pretrained(folder)
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
        return folder

    return make


def judge_of(folder, given, *unsafe, **changes):
    entry = Judge(judge="image-classifier", id=str(folder), unsafe_labels=list(unsafe))
    return ImageClassifier(entry, given._replace(**changes))


def logits_of(folder, images):
    """Of images of the model's size, by the model itself."""
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        return ViTForImageClassification.from_pretrained(folder)(pixels).logits.double().numpy()


def test_scores_are_the_probabilities_and_its_own_the_sum_of_the_unsafe(vit, eyes_of):
    folder = vit("neutral", "drawing", "gore", "smoke")
    expected = softmax(logits_of(folder, IMAGES), axis=1)
    entry = {"judge": "image-classifier", "id": str(folder), "name": "vit", "unsafe_labels": ["gore", "smoke"]}
    eyes = eyes_of(entry)
    rows = eyes.look(IMAGES, ["a"] * 3)
    for label, column in zip(("neutral", "drawing", "gore", "smoke"), expected.T, strict=True):
        assert [row[f"vit[{label}]"] for row in rows] == pytest.approx(column, abs=1e-5)
    assert [row["vit"] for row in rows] == pytest.approx(expected[:, 2:].sum(1), abs=1e-5)
    assert np.ptp(expected, axis=0).max() > 0.1  # the images are told apart
    about = eyes.about["vit"]
    assert (about["model"], about["unsafe"], len(about["weights"])) == (str(folder), "gore, smoke", 16)


@pytest.mark.parametrize("changes", [{"problem_type": "multi_label_classification"}, {}])
def test_of_several_labels_an_image_each_has_its_own_probability(vit, given, changes):
    labels = ("gore", "smoke", "cats") if changes else ("unsafe",)  # one label alone has no other to be a share of
    folder = vit(*labels, **changes)
    expected = expit(logits_of(folder, IMAGES))
    with torch.inference_mode():
        seen = judge_of(folder, given, *labels[:2])(Views(IMAGES))
    assert [seen.scores[label] for label in labels] == [pytest.approx(column, abs=1e-5) for column in expected.T]
    assert seen.scores[""] == pytest.approx(expected[:, :2].max(1), abs=1e-5)


def test_labels_of_one_name_are_one(vit, given):
    folder = vit("crane", "dog", "crane")
    expected = softmax(logits_of(folder, IMAGES), axis=1)
    with torch.inference_mode():
        judge = judge_of(folder, given, "crane")
        seen = judge(Views(IMAGES))
    assert judge.labels == ["crane", "dog"]
    assert seen.scores["crane"] == seen.scores[""] == pytest.approx(expected[:, 0] + expected[:, 2], abs=1e-5)


def test_images_of_different_sizes_are_seen_together(vit, given):
    judge = judge_of(vit("safe", "unsafe"), given, "unsafe")
    images = [*IMAGES, RNG.integers(0, 255, (60, 20, 3), dtype=np.uint8)]
    with torch.inference_mode():
        one_by_one = [judge(Views([image])).scores[""][0] for image in images]
        assert judge(Views(images)).scores[""] == pytest.approx(one_by_one, abs=1e-6)


def test_in_bfloat16_what_is_in_doubt_is_exact_and_the_rest_is_not_looked_at_again(vit, given, monkeypatch):
    folder = vit("safe", "unsafe")
    with torch.inference_mode():
        exact, half = (judge_of(folder, given, "unsafe", dtype=dtype) for dtype in ("float32", "bfloat16"))
        for judge in (exact, half):  # logits 12 apart
            judge.model.classifier.weight.zero_()
            judge.model.classifier.bias.copy_(torch.tensor([0.0, 12.0]))
        asked, of = [], half._of

        def look(views, again):
            asked.append((len(views.images), again))
            found = of(views, again)
            if not again:
                found[0] = 0.4  # as if bfloat16 had been wrong there
            return found

        monkeypatch.setattr(half, "_of", look)
        assert half(Views(IMAGES)).scores[""] == pytest.approx(exact(Views(IMAGES)).scores[""], abs=1e-6)
    assert asked == [(3, False), (1, True)]


@NO_GPU
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_it_sees_what_it_sees_on_the_cpu(vit, given, dtype):
    folder = vit("safe", "unsafe")
    with torch.inference_mode():
        here, there = (
            judge_of(folder, given, "unsafe", **changes)(Views(IMAGES)).scores[""]
            for changes in ({}, {"device": torch.device("cuda"), "dtype": dtype})
        )
    assert there == pytest.approx(here, abs=0.03 if dtype == "bfloat16" else 1e-4)


def test_labels_that_the_model_does_not_have_are_said(vit, eyes_of):
    entry = {"judge": "image-classifier", "id": str(vit("normal", "nsfw")), "unsafe_labels": ["nsfw", "gore"]}
    with pytest.raises(
        SafetyDPOError,
        match=r"^judges\.panel: `unsafe_labels` of image-classifier has `gore`, which .* has not; its labels are "
        r"normal, nsfw\.$",
    ):
        eyes_of(entry)


def test_what_is_no_classifier_is_a_sentence(vit, toy, given, tmp_path):
    with pytest.raises(SafetyDPOError, match=r"^The classifier .*nowhere cannot be loaded"):
        judge_of(tmp_path / "nowhere", given, "a")
    with pytest.raises(SafetyDPOError, match=r"^The classifier .* lacks classifier\.bias; the judge is damaged"):
        judge_of(toy[0], given, "a")  # a CLIP, whose classifier transformers would draw at random
    with pytest.raises(SafetyDPOError, match="is a regression, which gives no probabilities"):
        judge_of(vit("a", "b", problem_type="regression"), given, "a")


def test_broken_weights_end_the_job_by_name(vit, given, tmp_path):
    folder = vit("safe", "unsafe")
    judge = judge_of(folder, given, "unsafe")
    judge.model.classifier.bias.data[0] = float("inf")
    with torch.inference_mode(), pytest.raises(SafetyDPOError, match=r"^Logits by The classifier .*: 3 of 6 values"):
        judge(Views(IMAGES))
    shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(tmp_path / "copy/model.safetensors")
    weights["classifier.weight"].zero_()
    save_file(weights, tmp_path / "copy/model.safetensors", {"format": "pt"})
    with pytest.raises(SafetyDPOError, match=r"^classifier\.weight of The classifier .*copy: all values are 0"):
        judge_of(tmp_path / "copy", given, "unsafe")


def test_a_classifier_that_sees_nothing_is_refused_before_it_judges(vit, eyes_of):
    eyes = eyes_of({"judge": "image-classifier", "id": str(vit("safe", "unsafe")), "unsafe_labels": ["unsafe"]})
    eyes.check()
    norm = eyes.judges["image-classifier"].model.vit.layernorm
    norm.weight.data.zero_()
    norm.bias.data[:] = torch.arange(16.0)
    with pytest.raises(SafetyDPOError, match=r"^image-classifier sees no difference between two that"):
        eyes.check()
