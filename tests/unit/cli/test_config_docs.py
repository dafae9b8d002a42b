"""The config page is what the schema says."""

from snakes import ROOT

from safetydpo.cli.config_docs import config_docs


def test_the_config_page_is_the_schemas():
    assert (ROOT / "config/README.md").read_text() == config_docs() + "\n"  # else: make docs


def test_every_key_of_the_config_page_has_a_meaning():
    rows = [line for line in config_docs().splitlines() if line.startswith("| `")]
    assert len(rows) > 70
    assert [row for row in rows if not row.split("|")[-2].strip()] == []
