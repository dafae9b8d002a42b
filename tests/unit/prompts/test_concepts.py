"""Concepts of a category: from the config, its file and the language model; files of another form."""

import json
from collections import Counter

import pandas as pd
import pytest
from llm import prompts_of, serving

from safetydpo.config.prompts import Category
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.concepts import read_concepts
from safetydpo.prompts.stage import write_concepts
from safetydpo.storage.files import read_parquet


def test_concepts_come_from_config_file_and_model_and_may_be_edited(tmp_path):
    server = serving()
    config = prompts_of(server, expand_concepts=3)
    out = tmp_path / "concepts.parquet"
    write_concepts(Category(name="violence"), config, tmp_path / "journal", out)
    table = read_parquet(out)
    assert Counter(table.source) == {"file": 5, "llm": 3}
    assert "Not these, which are known: fighting, weapons, war" in server.requests[0]["messages"][0]["content"]
    pd.DataFrame({"concept": ["rain", " rain ", "", None, "snow"]}).to_parquet(out)
    assert read_concepts(out) == ["rain", "snow"]
    pd.DataFrame({"concept": [b"rain", b"snow"]}).to_parquet(out)  # as other tools write texts
    assert read_concepts(out) == ["rain", "snow"]
    write_concepts(Category(name="violence", concepts=["one"]), prompts_of(server), tmp_path / "journal", out)
    assert read_parquet(out).concept.to_list() == ["one"]


def test_concepts_are_not_asked_for_when_the_budget_of_the_run_is_spent(tmp_path, capsys):
    (tmp_path / "hate.jsonl").write_text(json.dumps({"key": "00", "sent": 900, "written": 100}) + "\n")
    server = serving()
    config = prompts_of(server, expand_concepts=3, llm={"token_budget": 1000})
    write_concepts(Category(name="violence"), config, tmp_path, tmp_path / "c.parquet")
    assert not server.requests
    assert "Token budget reached while asking for concepts" in capsys.readouterr().out
    assert set(read_parquet(tmp_path / "c.parquet").source) == {"file"}


def concepts_of(tmp_path, text, name="violence", **llm):
    folder = tmp_path / "concepts"
    folder.mkdir(exist_ok=True)
    (folder / "violence.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    config = prompts_of(serving(), llm={"concepts": str(folder), **llm})
    write_concepts(Category(name=name), config, tmp_path / "journal", tmp_path / "c.parquet")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("concepts: [war, 1984]", r"`concepts` must be a list of texts; 1984 is not \(quote it\?\)"),
        ("concepts: war", "`concepts` must be a list of texts; 'war' is not"),
        ("description: [a]", "`description` must be a text, not list"),
        ("- war", "must have the keys `description`, a text, and `concepts`"),
        ("words: [war]", "must have the keys `description`, a text, and `concepts`"),
        ("concepts: [war", "is not YAML"),
        ("concepts: [{war: 1}]", r"`concepts` must be a list of texts; a dict is not"),
        ("concepts: [war]\ndescription: Fights.\nconcepts: [fight]", r"violence.yaml gives a key twice.*\n.*line 3"),
        ("concepts: [caf\xe9]".encode("latin-1"), "violence.yaml .*UTF-8"),
        ("concepts: [war]".encode("utf-16"), "violence.yaml .*UTF-8"),
        ("description: Fights.", "Category violence has no concepts: list them in .*violence.yaml"),
    ],
)
def test_a_concept_file_of_another_form_is_a_sentence(tmp_path, text, message):
    with pytest.raises(SafetyDPOError, match=message):
        concepts_of(tmp_path, text)


def test_a_concept_file_with_empty_keys_or_a_byte_order_mark_is_read(tmp_path):
    concepts_of(tmp_path, "\ufeffdescription:\nconcepts: [war]")
    assert read_parquet(tmp_path / "c.parquet").concept.to_list() == ["war"]


def test_an_unknown_category_lists_those_there_are(tmp_path):
    with pytest.raises(SafetyDPOError, match=r"Category rudeness has no concepts: .*there are files for violence"):
        concepts_of(tmp_path, "concepts: [war]", name="rudeness")
