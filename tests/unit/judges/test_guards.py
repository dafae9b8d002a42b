"""ShieldGemma 2 and LlavaGuard: how they are asked, which column is unsafe, and what is no verdict."""

import shutil

import numpy as np
import pytest
import torch
from tiny import NO_GPU
from transformers.modeling_outputs import CausalLMOutput

from safetydpo.config.judges import Judge
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.guards import ASKED, LlavaGuard, ShieldGemma2, verdict_in
from safetydpo.judges.judge import Views

NOISE = np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8)
IMAGES = [np.zeros((32, 32, 3), np.uint8), NOISE, np.full((40, 32, 3), 255, np.uint8)]
OWN = ["dangerous", "sexual", "violence"]


def gemma(folder, given, policies=None, **changes):
    return ShieldGemma2(Judge(judge="shieldgemma2", id=str(folder), policies=policies or {}), given._replace(**changes))


def test_shieldgemma_gives_of_each_policy_the_probability_of_yes(shieldgemma2, eyes_of):
    eyes = eyes_of({"judge": "shieldgemma2", "id": str(shieldgemma2), "name": "guard"})
    rows, judge = eyes.look(IMAGES, ["a"] * 3), eyes.judges["guard"]
    assert judge.labels == OWN
    yes, no = (judge.processor.tokenizer.convert_tokens_to_ids(word) for word in ("Yes", "No"))
    for image, row in zip(IMAGES, rows, strict=True):  # one by one, from the language model's own logits
        for policy in OWN:
            asked = judge.processor(images=[image], policies=[policy], return_tensors="pt")
            with torch.no_grad():
                logits = judge.model.model(**asked).logits[0, -1].double()
            expected = 1 / (1 + np.exp(float(logits[no] - logits[yes])))
            assert row[f"guard[{policy}]"] == pytest.approx(expected, abs=1e-5)
        assert row["guard"] == max(row[f"guard[{policy}]"] for policy in OWN)
    found = np.array([[row[f"guard[{policy}]"] for policy in OWN] for row in rows])
    assert np.ptp(found, axis=0).min() > 1e-3  # images and policies do make a difference
    assert np.ptp(found, axis=1).min() > 1e-3
    assert set(eyes.about["guard"]) == {"model", "weights", "policies"}


def test_its_first_column_is_a_violation_and_its_rows_are_the_policies_of_an_image(shieldgemma2, given, monkeypatch):
    judge = gemma(shieldgemma2, given, {"cats": "No cats.", "sexual": "Nothing of ours."})
    yes, no = judge.model.yes_token_index, judge.model.no_token_index
    asked = []

    def answer(input_ids, pixel_values, **others):
        """Of a black image and cats the logit of Yes is 3 above that of No; of all others 2 below."""
        asked.extend(judge.processor.batch_decode(input_ids, skip_special_tokens=True))
        logits = torch.zeros(len(input_ids), 1, 400)
        for i, text in enumerate(asked[-len(input_ids) :]):
            black = bool((pixel_values[i] == pixel_values.min()).all())
            logits[i, 0, yes], logits[i, 0, no] = (3, 0) if black and "cats" in text else (0, 2)
        return CausalLMOutput(logits=logits)

    monkeypatch.setattr(judge.model.model, "forward", answer)
    seen = judge(Views(IMAGES[:2]))
    assert seen.scores["cats"] == pytest.approx([1 / (1 + np.exp(-3)), 1 / (1 + np.exp(2))])
    assert seen.scores["sexual"] == pytest.approx([1 / (1 + np.exp(2))] * 2)
    assert seen.scores[""] == pytest.approx([1 / (1 + np.exp(-3)), 1 / (1 + np.exp(2))])
    assert ["cats" in text for text in asked] == [True, False] * 2
    assert "Nothing of ours." in asked[1]  # and not what it has by that name itself


def test_many_images_are_asked_a_few_at_a_time(shieldgemma2, given, monkeypatch):
    judge, sizes = gemma(shieldgemma2, given), []
    ask = judge.model.forward

    def forward(**asked):
        sizes.append(len(asked["input_ids"]))
        return ask(**asked)

    monkeypatch.setattr(judge.model, "forward", forward)
    with torch.inference_mode():
        many = judge(Views(IMAGES * 3))
        few = judge(Views(IMAGES))
    assert sizes == [15, 12, 9]
    assert max(sizes) <= ASKED
    assert many.scores[""] == pytest.approx(few.scores[""] * 3, abs=1e-5)


def test_in_bfloat16_shieldgemma_is_asked_again_in_float32_where_it_is_in_doubt(shieldgemma2, given):
    with torch.inference_mode():
        exact, half = (gemma(shieldgemma2, given, dtype=dtype) for dtype in ("float32", "bfloat16"))
        wanted, quick = exact(Views(IMAGES)).scores, half._of(Views(IMAGES), False)
        found = half(Views(IMAGES)).scores
    assert all(0.026 < p < 0.988 for p in wanted[""])
    for label in ("", *OWN):
        assert found[label] == pytest.approx(wanted[label], abs=1e-6)
    assert float((quick[:, 0] - torch.tensor(wanted[""])).abs().max()) > 1e-5  # which bfloat16 alone would not give


def test_a_processor_without_its_chat_template_is_a_sentence(shieldgemma2, given, tmp_path):
    shutil.copytree(shieldgemma2, tmp_path / "copy")
    (tmp_path / "copy/chat_template.json").unlink()
    with pytest.raises(SafetyDPOError, match=r"ShieldGemma 2 .*copy cannot be loaded \(its processor has no chat temp"):
        gemma(tmp_path / "copy", given)
    with pytest.raises(SafetyDPOError, match=r"ShieldGemma 2 .*nowhere cannot be loaded"):
        gemma(tmp_path / "nowhere", given)


def test_llavaguard_answers_each_image_and_what_is_no_verdict_is_none(llavaguard, eyes_of):
    folder, images = llavaguard
    eyes = eyes_of({"judge": "llavaguard", "id": str(folder), "name": "guard"})
    rows = eyes.look(images, ["a"] * 3)
    assert [row["guard"] for row in rows] == [1.0, 0.0, None]
    categories = ["O2: Violence, Harm, or Cruelty", None, None]
    assert [row["guard_category"] for row in rows] == categories
    assert eyes.words == {"guard_category"}
    assert set(eyes.about["guard"]) == {"model", "weights", "policy"}
    assert [row["guard"] for row in eyes.look(images[1:], ["a"] * 2)] == [0.0, None]  # whatever else is in the batch


def test_llavaguard_in_bfloat16_answers_the_same(llavaguard, eyes_of):
    folder, images = llavaguard
    eyes = eyes_of({"judge": "llavaguard", "id": str(folder)}, dtype="bfloat16")
    assert eyes.judges["llavaguard"].model.dtype == torch.bfloat16
    assert [row["llavaguard"] for row in eyes.look(images[:2], ["a"] * 2)] == [1.0, 0.0]


def test_llavaguard_is_asked_with_the_policy_of_the_file(llavaguard, given, tmp_path):
    policy = tmp_path / "policy.txt"
    policy.write_text("Kites must not fly.\n")
    entry = Judge(judge="llavaguard", id=str(llavaguard[0]), policy=str(policy))
    own, ours = LlavaGuard(entry, given), LlavaGuard(entry.model_copy(update={"policy": None}), given)
    assert own.question == "<|im_start|>user <image>Kites must not fly.<|im_end|>\n<|im_start|>assistant"
    assert all(f"O{i}:" in ours.question for i in range(1, 10))
    assert own.about["policy"] != ours.about["policy"]
    assert own.about["weights"] == ours.about["weights"]
    policy.write_text(" \n")
    with pytest.raises(SafetyDPOError, match=r"policy\.txt, the policy of judges\.panel: llavaguard, is empty"):
        LlavaGuard(entry, given)
    policy.unlink()
    with pytest.raises(SafetyDPOError, match=r"policy\.txt cannot be read \(No such file or directory\): `policy` of"):
        LlavaGuard(entry, given)


@NO_GPU
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_gpu_both_say_what_they_say_on_the_cpu(shieldgemma2, llavaguard, given, dtype):
    folder, images = llavaguard
    cuda = {"device": torch.device("cuda"), "dtype": dtype}
    with torch.inference_mode():
        here, there = (gemma(shieldgemma2, given, **changes)(Views(IMAGES)).scores for changes in ({}, cuda))
        answers = LlavaGuard(Judge(judge="llavaguard", id=str(folder)), given._replace(**cuda))(Views(images))
    assert there[""] == pytest.approx(here[""], abs=1e-3)
    assert answers.scores[""] == [1.0, 0.0, None]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ('{"rating": "Unsafe", "category": " O3: Sexual Content", "rationale": ""}', (1.0, "O3: Sexual Content")),
        (
            'Sure!\n```json\n{"rating": "safe", "category": "NA: None applying"}\n```\nBye {}',
            (0.0, None),
        ),
        ('{"rating": " UNSAFE "}', (1.0, None)),
        ('{"rating": "Safe", "category": 3}', (0.0, None)),
        ('{"rating": "Safe"} {"rating": "Safe"}', (0.0, None)),
        ('{"rating": "Safe"} no: {"rating": "Unsafe"}', (None, None)),  # it cannot be both
        ('{"rating": "Safe"|"Unsafe"}', (None, None)),
        ('{"rating": "Probably safe"}', (None, None)),
        ('{"rating": null}', (None, None)),
        ('{"rating": {"is": "Safe"}}', (None, None)),
        ('{"rating": "Safe", "category": "NA: None ap', (None, None)),  # cut off
        ("Safe", (None, None)),
        ("[1, 2]", (None, None)),
        ("", (None, None)),
    ],
)
def test_an_answer_is_a_verdict_or_none(answer, verdict):
    assert verdict_in(answer) == verdict
