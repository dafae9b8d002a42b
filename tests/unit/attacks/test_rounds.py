"""The rounds: every attack, the same twice, and what counts as a success."""

from functools import cache

import numpy as np
import pytest
from attacks_target import PAIRS, PROMPT, SMALL, WORDS, case, target_of
from tiny import DEVICES, FAMILIES

from safetydpo.attacks.case import Given
from safetydpo.attacks.registry import ATTACKS
from safetydpo.attacks.rounds import attack_of, attacked, succeeded
from safetydpo.attacks.target import Seen
from safetydpo.config.attacks import Attacks
from safetydpo.errors import SafetyDPOError
from safetydpo.models.families import registry as families

NAMES = ["random-tokens", "ring-a-bell", "mma-diffusion", "sneaky-prompt", "unlearn-diff-atk"]


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    """Targets by family and device, each opened once."""
    return cache(lambda *which: target_of(tmp_path_factory.mktemp("target") / "m", *which))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("device", DEVICES)
def test_every_attack_is_the_same_twice_and_uses_no_forbidden_word(targets, family, name, device):
    target = targets(family, device)
    config = Attacks(run=[name], forbidden=WORDS, rounds=3, **SMALL)  # type: ignore[arg-type]
    if name in target.family.kind.refuses:
        with pytest.raises(
            SafetyDPOError,
            match=rf"^attacks.run: `{name}` cannot be done with .*m, of family z-image: the attack's prefix ",
        ):
            attack_of(name, target, config, Given(PAIRS, strip=True))
        return
    found = []
    for _ in range(2):
        cases, ended = [case(1), case(2)], []
        attack = attack_of(name, target, config, Given(PAIRS, strip=True))
        attacked(attack, target, cases, config.rounds, config.success, ended.append)
        assert {id(c) for c in ended} == {id(c) for c in cases}
        assert all(1 <= c.queries <= 3 and c.found for c in cases)
        assert not any(target.vocabulary.forbids(c.found) for c in cases)
        found.append([(c.found, c.queries, c.steps, c.loss, c.flagged) for c in cases])
    assert str(found[0]) == str(found[1])


@pytest.mark.parametrize("strip", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_of_forbidden_words_alone_can_be_attacked(targets, name, strip):
    target = targets("sd15", "cpu")
    config = Attacks(run=[name], forbidden=WORDS, **SMALL)  # type: ignore[arg-type]
    one = case()
    one.original, one.stripped = "zorin", target.vocabulary.without_forbidden("zorin")
    assert one.stripped == ""
    attack_of(name, target, config, Given(PAIRS, strip=strip)).propose([one])
    assert one.proposed == one.proposed.strip() != ""
    assert target.vocabulary.forbids(one.proposed) is (name == "unlearn-diff-atk" and not strip)


def test_of_all_families_one_attack_on_one_is_refused():
    refused = {(kind.name, name) for kind in families.FAMILIES for name in ATTACKS if name in kind.refuses}
    assert refused == {("z-image", "unlearn-diff-atk")}


@pytest.mark.parametrize(("name", "reads"), [("original", PROMPT), ("words-removed", case().stripped)])
@pytest.mark.parametrize("family", ["sd3-t5", "flux-schnell", "z-image"])
def test_a_control_is_an_image_of_the_prompt(targets, family, name, reads):
    target, one = targets(family, "cpu"), case()
    attacked(
        attack_of(name, target, Attacks(run=[], forbidden=WORDS), Given({}, strip=True)),
        target,
        [one],
        1,
        "flagged",
        [].append,
    )
    assert (one.found, one.queries, one.original) == (reads, 1, PROMPT)


def test_of_flagged_images_only_those_of_the_category_count_where_asked():
    seen = Seen(True, "ring", 0.9, np.zeros(1))
    assert succeeded(case(), seen, "flagged")
    assert not succeeded(case(), seen, "category")
    assert succeeded(case(), seen._replace(category="cross"), "category")
    assert not succeeded(case(), seen._replace(category="cross", flagged=False), "category")
