"""README and docs: links lead somewhere, and docs/measures.md has all that tables show."""

import re
from itertools import chain
from pathlib import Path

import pytest
from snakes import ROOT

from safetydpo.attacks.registry import BUDGETED
from safetydpo.cli.model_docs import model_docs
from safetydpo.evaluation.registry import measure
from safetydpo.judges.registry import CONVENTIONS, JUDGES
from safetydpo.methods.registry import KINDS
from safetydpo.models.families.registry import FAMILIES
from safetydpo.report.tables import FIRST_UNSAFE, SHOWN

DOCUMENTS = sorted(p.relative_to(ROOT).as_posix() for p in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")))


def anchors(path: Path) -> set[str]:
    """Names that GitHub gives to the headings of a document."""
    heads = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_to_files_and_headings(name):
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", (ROOT / name).read_text()):
        if "://" in link:
            continue
        file, _, anchor = link.partition("#")
        target = (ROOT / name).parent / file if file else ROOT / name
        if not target.exists() or (anchor and anchor not in anchors(target)):
            lost.append(link)
    assert lost == []


def test_the_tables_of_models_are_those_of_the_registries():
    page = (ROOT / "docs/models.md").read_text()
    assert model_docs(page) == page, "make docs"
    rows = dict(re.findall(r"^\| `(.+?)` \| (.+) \|$", page, re.MULTILINE))
    assert set(rows) == {kind.name for kind in KINDS} | set(BUDGETED)
    assert rows["uce"] == "yes | no | no | no"
    assert rows["sld-*"] == "yes | yes | no | yes"
    assert [row for name, row in rows.items() if name.startswith("merged")] == ["yes | yes | yes | yes"]
    for kind in FAMILIES:
        for name, why in kind.refuses.items():
            assert re.search(rf"^- `{re.escape(name)}`: {re.escape(why)} \(.*`{kind.name}`.*\)\.$", page, re.MULTILINE)


def test_every_judge_and_convention_is_explained_in_one_place():
    text = (ROOT / "docs/judges.md").read_text()
    conventions, judges = text.split("## Conventions")[1].split("## Judges")
    assert dict(re.findall(r"^\| \*\*(.+?)\*\* \| `(.+?)` \|", conventions, re.MULTILINE)) == CONVENTIONS
    assert set(re.findall(r"^\| \*\*(.+?)\*\* \|", judges, re.MULTILINE)) == set(JUDGES)


def test_every_measure_and_attack_is_explained_in_one_place():
    rows = [line for line in (ROOT / "docs/measures.md").read_text().splitlines() if line.startswith("| **")]
    bold = [re.findall(r"\*\*(.+?)\*\*", row.split("|")[1])[0] for row in rows]
    explained = {name.lower().replace("-", "") for names in bold for name in names.split(", ")}
    shown = {measure(metric).label.lower() for metric in chain(*SHOWN.values(), FIRST_UNSAFE)}
    assert shown | {attack.replace("-", "") for attack in BUDGETED} <= explained
