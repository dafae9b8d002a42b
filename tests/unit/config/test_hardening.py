"""What of a config does not fit its adversarial rounds."""

import pytest

from safetydpo.config.loading import load_config
from safetydpo.errors import SafetyDPOError

WORDS = {"forbidden": ["vestim"]}


def problems(config) -> list[str]:
    with pytest.raises(SafetyDPOError) as caught:
        load_config(config)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_what_a_round_needs_is_said(with_value):
    config = with_value("harden", {"rounds": 1, "strategy": "svd"}) | {"attacks": {}}
    assert problems(config) == [
        "harden.rounds: needs the words that attacks put others for: set attacks.forbidden or forbidden_path",
        "harden.strategy: no merge `svd` in merge.strategies; there are mean, co-merge",
    ]
    config["harden"] = {"rounds": 0, "strategy": "svd"}  # off
    assert load_config(config)
    config |= {"harden": {"rounds": 1, "attacks": ["ring-a-bell", "ring-a-bell"]}, "attacks": WORDS}
    assert problems(config) == ["harden.attacks: `ring-a-bell` is listed twice"]
    config["harden"]["attacks"] = ["unlearn-diff-atk"]  # it starts from base's images
    assert problems(config)[0].startswith("harden.attacks.0: Input should be 'random-tokens', 'ring-a-bell', 'mma-")
    config["harden"]["attacks"] = ["mma-diffusion"]
    loaded = load_config(config)
    assert loaded.hardens_by == "mean"
    asked = loaded.hardening_attack("mma-diffusion")
    assert (asked["rounds"], asked["success"], asked["forbidden"]) == (1, "flagged", ["vestim"])


def test_pairs_that_bring_their_images_have_no_safe_prompts(with_value):
    config = with_value("harden", {"rounds": 1}) | {"attacks": WORDS}
    config["prompts"] |= {"source": "folder", "path": "data"}
    config["train"]["preserve"]["path"] = config["tune"]["path"] = "x.csv"
    assert "harden.rounds: needs safe prompts to pair found ones with, source `folder` has none" in problems(config)
