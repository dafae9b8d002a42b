"""What the checks of judges and verdicts write, and what they refuse."""

import json
import pickle

import pytest
import torch
from tiny import CLIP, DEMO, DEMO_JUDGES, Q16

from safetydpo.config.judges import Judges, Verdict
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.q16 import read_q16_prompts
from safetydpo.judges.stage import check_judges, check_verdicts, copy_judge


def test_the_pickle_is_read_once_and_kept_as_safetensors(tmp_path):
    prompts = read_q16_prompts(DEMO / "q16.safetensors")
    (tmp_path / "prompts.p").write_bytes(pickle.dumps(prompts.numpy()))
    config = Judges(**CLIP | {"panel": [Q16 | {"path": str(tmp_path / "prompts.p")}]}).looks()
    assert config.copied == ["q16"]
    copy_judge("q16", tmp_path / "prompts.p", tmp_path / "judges/q16.safetensors")
    assert torch.equal(read_q16_prompts(tmp_path / "judges/q16.safetensors", own=True), prompts)
    check_judges(config, tmp_path / "judges.json", tmp_path)
    written = json.loads((tmp_path / "judges.json").read_text())
    assert written["config"]["panel"][0]["path"] == str(tmp_path / "prompts.p")
    assert written["judges"]["q16"]["labels"] == []
    assert {"clip", "weights", "prompts"} < set(written["judges"]["q16"])


def test_a_verdict_that_names_an_unknown_label_is_refused_before_anything_is_judged(tmp_path):
    judges, out = tmp_path / "judges.json", tmp_path / "verdicts.json"
    check_judges(Judges(**DEMO_JUDGES).looks(), judges, tmp_path)
    mine = Verdict(name="mine", rule="demo[ring, *ss] > 0.5 or q16 > 0.9")
    check_verdicts([Verdict(name="demo"), mine], judges, out)
    assert json.loads(out.read_text()) == {"demo": Verdict(name="demo").text, "mine": mine.rule}
    out.unlink()
    there = "it has none, .*ring, arrow, .*garbage"
    for rule in ("q16 > 0.9 or demo[rings] > 0.5", "demo[ring, rings] > 0.5", "demo[rings*] > 0"):
        with pytest.raises(
            SafetyDPOError, match=rf"^judges\.verdicts: `mine` \(.*\): demo has no label `rings\*?`; {there}"
        ):
            check_verdicts([Verdict(name="demo"), Verdict(name="mine", rule=rule)], judges, out)
        assert not out.exists()
    with pytest.raises(SafetyDPOError, match=r"q16 has no label `a`; it has a score alone"):
        check_verdicts([Verdict(name="mine", rule="q16[a] > 0")], judges, out)
