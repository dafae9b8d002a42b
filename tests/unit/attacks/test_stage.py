"""The attack stage: which prompts are attacked, and the journal of those that are finished."""

import json

import numpy as np
import pandas as pd
import pytest
from attacks_target import WORDS

from safetydpo.attacks.stage import Journal, prompts_to_attack, write_attack
from safetydpo.config.attacks import Attacks
from safetydpo.config.baselines import Baselines
from safetydpo.config.judges import Judges
from safetydpo.config.model import Model
from safetydpo.errors import SafetyDPOError
from safetydpo.storage.images import png, write_images


def test_a_benchmark_without_unsafe_prompts_is_refused_in_a_sentence(tmp_path):
    rows = pd.DataFrame({"prompt_id": ["a"], "prompt": ["a red circle"], "category": ["safe"], "kind": ["safe"]})
    rows.to_parquet(tmp_path / "b.parquet")
    with pytest.raises(SafetyDPOError, match=r"b.parquet has no unsafe prompts to attack: name another benchmark"):
        prompts_to_attack(tmp_path / "b.parquet", Attacks(run=["ring-a-bell"], forbidden=WORDS))


def test_a_prompt_without_an_image_of_base_is_said_before_a_model_is_loaded(tmp_path):
    rows = pd.DataFrame({"prompt_id": ["a", "b"], "prompt": "a red circle", "category": "ring", "kind": "unsafe"})
    rows.to_parquet(tmp_path / "b.parquet")
    write_images(
        [{"prompt_id": "a", "image": png(np.zeros((8, 8, 3), np.uint8))}], tmp_path / "0.parquet", {}, ("image",)
    )
    q16 = {"judge": "q16", "id": "none", "path": "none"}
    none = Judges(panel=[q16], verdicts=[{"name": "q16"}], clip_score="none")  # type: ignore[arg-type]
    with pytest.raises(SafetyDPOError, match=r"base's images of .*b\.parquet lack b: delete .*0\.parquet and rerun"):
        write_attack(
            "unlearn-diff-atk",
            "base",
            Attacks(run=["unlearn-diff-atk"], forbidden=WORDS),
            Model(id="none", height=8, width=8, num_inference_steps=1, guidance_scale=1, batch_size=1),
            Baselines(),  # type: ignore[call-arg]
            none,
            prompts=tmp_path / "b.parquet",
            pairs=[],
            images=[str(tmp_path / "0.parquet")],
            answers=tmp_path,
            weights=None,
            scale=1.0,
            seed=0,
            journal=tmp_path / "j.jsonl",
            out=tmp_path / "out.parquet",
        )
    # by whose verdict: what was finished by another is not gone on with
    assert json.loads((tmp_path / "j.jsonl").read_text())["judges"]["verdicts"] == [{"name": "q16", "rule": None}]


def test_a_journal_keeps_whole_lines_of_the_same_attack_and_no_others(tmp_path):
    path = tmp_path / "j.jsonl"
    first = Journal(path, {"attack": "a"})
    first.put({"prompt_id": "x", "success": True})
    first.put({"prompt_id": "y", "success": False})
    first.file.close()
    with path.open("a") as file:
        file.write('{"prompt_id": "z", "succ')  # a kill in the middle of a line
    again = Journal(path, {"attack": "a"})
    assert list(again.done) == ["x", "y"]
    again.put({"prompt_id": "z", "success": True})
    again.file.close()
    assert [json.loads(line).get("prompt_id") for line in path.read_text().splitlines()] == [None, "x", "y", "z"]
    damaged = path.read_text().replace('{"prompt_id": "y"', '{"prompt')
    path.write_text(damaged)
    with pytest.raises(
        SafetyDPOError, match=r"j.jsonl, the prompts finished until now, is damaged: delete it and rerun"
    ):
        Journal(path, {"attack": "a"})
    assert path.read_text() == damaged
    assert Journal(path, {"attack": "b"}).done == {}
