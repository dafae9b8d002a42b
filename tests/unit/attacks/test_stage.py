"""The attack stage: which prompts are attacked, and the journal of those that are finished."""

import json

import pandas as pd
import pytest
from attacks_target import WORDS

from safetydpo.attacks.stage import Journal, prompts_to_attack
from safetydpo.config.attacks import Attacks
from safetydpo.errors import SafetyDPOError


def test_a_benchmark_without_unsafe_prompts_is_refused_in_a_sentence(tmp_path):
    rows = pd.DataFrame({"prompt_id": ["a"], "prompt": ["a red circle"], "category": ["safe"], "kind": ["safe"]})
    rows.to_parquet(tmp_path / "b.parquet")
    with pytest.raises(SafetyDPOError, match=r"b.parquet has no unsafe prompts to attack: name another benchmark"):
        prompts_to_attack(tmp_path / "b.parquet", Attacks(run=["ring-a-bell"], forbidden=WORDS))


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
    assert Journal(path, {"attack": "b"}).done == {}
