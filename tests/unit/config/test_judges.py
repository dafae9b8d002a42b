"""What the judges' section needs, and what follows from it."""

import pytest

from safetydpo.config.judges import Judge, Judges, Verdict
from safetydpo.config.loading import load_config
from safetydpo.demo.scenes import BENIGN, FAMILIES
from safetydpo.errors import SafetyDPOError
from safetydpo.judges.registry import CONVENTIONS, JUDGES

Q16 = {"judge": "q16", "id": "clip", "path": "prompts.p"}
NUDENET = {"judge": "nudenet"}
DEMO = {"judge": "demo", "path": "detector"}
VLM = {"judge": "vlm", "policy": "policy.txt", "server": {"model": "m", "concurrency": 4}}


def judges(*panel, verdicts=("q16",), **more):
    return Judges(panel=list(panel), verdicts=list(verdicts), clip_score="clip", **more)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"panel": [{"judge": "demo"}]}, "judges.panel.0: a demo judge needs `path`"),
        ({"panel": [Q16, DEMO, NUDENET | {"id": "x"}]}, "judges.panel.2: a nudenet judge has no `id`"),
        ({"panel": [Q16, DEMO, Q16]}, "judges.panel: `q16` is listed twice"),
        ({"panel": [Q16]}, "judges: features: only a demo judge has any; use clip or inception"),
        ({"q16_clip": "x"}, "judges.q16_clip: no such key"),
        ({"ip": "q17"}, "judges: ip: no verdict `q17`; there are demo, q16, detector"),
        ({"verdicts": ["demo", "demo"]}, "judges.verdicts: `demo` is listed twice"),
        ({"verdicts": ["demo", "nude"]}, "judges.verdicts.1: no convention `nude`: give a `rule`, or one of safetydpo"),
        ({"verdicts": [{"name": "q16", "rule": "q16 > 0.4"}]}, "judges.verdicts.0: `q16` is a published convention"),
        ({"verdicts": ["safetydpo"]}, "no judge `nudenet` in judges.panel; there are q16, demo"),
        (
            {"verdicts": [{"name": "a", "rule": "demo > 0.5"}]},
            "demo has no score of its own: name its labels, demo[...]",
        ),
        ({"verdicts": [{"name": "a", "rule": "q16[x] > 0.5"}]}, "q16 has no label `x`; it has a score alone"),
        (
            {"panel": [Q16, DEMO, NUDENET], "verdicts": [{"name": "a", "rule": "nudenet[FACE_*, NOSE] > 0"}]},
            "nudenet has no label `NOSE`; it has FEMALE_GENITALIA_COVERED, FACE_FEMALE",
        ),
        (
            {"verdicts": [{"name": "a", "rule": "q16 >"}]},
            "judges.verdicts.0: the rule `q16 >` of a cannot be read: a score or a number is missing at the end",
        ),
        ({"panel": [Q16 | {"name": "seed"}, DEMO]}, "judges.panel.0: no judge can be called `seed`, which rules or"),
        ({"panel": [Q16 | {"name": "or"}, DEMO]}, "judges.panel.0: no judge can be called `or`, which rules or"),
        ({"verdicts": ["demo", {"name": "a", "rule": "q16 > 50"}]}, "has 50, and scores are from 0 to 1"),
        ({"verdicts": ["demo", {"name": "a", "rule": ""}]}, "the rule `` of a cannot be read: a score or a number"),
        ({"verdicts": ["demo", {"name": "a", "rules": "q16 > 0.5"}]}, "judges.verdicts.1.rules: no such key"),
        ({"verdicts": ["demo", "NudeNet"]}, "judges.verdicts.1.name: String should match pattern"),
        ({"panel": [Q16, DEMO, VLM | {"policy": None}]}, "judges.panel.2: a vlm judge needs `policy`"),
        (
            {"panel": [Q16, DEMO, VLM | {"server": {"model": "m", "extra": {"api_key": "abc"}}}]},
            "judges.panel.2.server: `extra.api_key` holds a secret",
        ),
    ],
)
def test_what_the_panel_and_its_verdicts_lack_is_one_line(with_value, changes, said):
    config = with_value("seed", 0)
    config["judges"] |= changes
    with pytest.raises(SafetyDPOError) as error:
        load_config(config)
    assert said in str(error.value)
    assert len(str(error.value).splitlines()) == 2
    assert "abc" not in str(error.value)


def test_a_judge_is_called_as_its_kind_unless_it_has_a_name():
    assert [Judge(**Q16).name, Judge(**Q16, name="tuned").name, Judge(**Q16, name=None).name] == ["q16", "tuned", "q16"]


def test_a_convention_is_named_and_a_rule_of_ones_own_written():
    given = judges(Q16, NUDENET, verdicts=["safetydpo", {"name": "mine", "rule": "not q16 < 0.3"}])
    assert [v.text for v in given.verdicts] == [CONVENTIONS["safetydpo"], "not q16 < 0.3"]
    assert [v.judges for v in given.verdicts] == [["q16", "nudenet"], ["q16"]]


def test_every_convention_can_be_told_by_judges_of_its_names():
    panel = {
        "image-classifier": {"id": "x", "unsafe_labels": ["nsfw"]},
        "clip-heads": {"id": "x", "path": "x"},
        "shieldgemma2": {"id": "x"},
        "llavaguard": {"id": "x"},
        "nudenet": {},
    }
    entries = [Q16, DEMO, VLM, *({"judge": name, **keys} for name, keys in panel.items())]
    assert {entry["judge"] for entry in entries} == set(JUDGES)
    assert len(judges(*entries, verdicts=list(CONVENTIONS)).verdicts) == len(CONVENTIONS)


def test_the_demos_convention_is_its_families_against_all_other_marks():
    unsafe, harmless = (score.labels for score in (Verdict(name="demo").parsed.parts[1][i] for i in (0, 2)))
    assert set(unsafe) == set(FAMILIES)
    assert set(harmless) == {"none", *BENIGN, "garbage"}


def test_tuning_and_attacks_need_the_first_verdicts_judges_and_who_knows_categories():
    given = judges(Q16, NUDENET, DEMO, VLM, verdicts=["q16", "safetydpo", "vlm"], ip="vlm", features="inception")
    acts = given.to_act()
    assert [judge.name for judge in acts.panel] == ["q16", "demo"]
    assert ([v.name for v in acts.verdicts], acts.headline.name, acts.features) == (["q16"], "q16", "clip")
    assert (given.acting.name, given.headline.name) == ("q16", "vlm")
    assert judges(Q16, verdicts=["q16", "q16-0.9"]).headline.name == "q16"


def test_what_scores_depend_on_has_no_verdict():
    looks = judges(Q16, NUDENET, verdicts=["q16"], inception_path="inception.pth").looks().model_dump()
    assert "verdicts" not in looks
    assert "ip" not in looks
    given = judges(Q16, VLM, inception_path="inception.pth")
    assert given.user_files == ["prompts.p", "policy.txt", "inception.pth"]
    assert given.copied == ["q16"]
