"""Concepts of a category: from the config, its file and the language model; files of another form."""

import json
from collections import Counter

import pandas as pd
import pytest
from chat_server import completion
from llm import prompts_of, serving
from snakes import ROOT

from safetydpo.config.prompts import LLM, Category
from safetydpo.errors import SafetyDPOError
from safetydpo.prompts.concepts import concept_file, read_concepts
from safetydpo.prompts.overlap import spellings
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
    assert read_concepts(out)["cruelty"][:2] == ["cruelty", "cruel"]
    pd.DataFrame({"concept": ["rain", " rain ", "", None, "snow"]}).to_parquet(out)
    assert read_concepts(out) == {"rain": ["rain"], "snow": ["snow"]}
    pd.DataFrame({"concept": [b"rain", b"snow"]}).to_parquet(out)  # as other tools write texts
    assert read_concepts(out) == {"rain": ["rain"], "snow": ["snow"]}
    words = ["shower, wet street ,, shower", "hail", None]
    pd.DataFrame({"concept": ["rain", "rain", "snow"], "words": words}).to_parquet(out)
    assert read_concepts(out) == {"rain": ["rain", "shower", "wet street", "hail"], "snow": ["snow"]}
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
        (
            "word: [war]",
            "must have the keys `description`, a text, and `concepts`, a list of texts, and may have `words`",
        ),
        ("concepts: [rain]\nwords: wet", "`words` must be a list of texts; 'wet' is not"),
        ("concepts: [rain]\nwords: {rain: [1]}", "`words` of rain must be a list of texts; 1 is not"),
        ("concepts: [rain]\nwords: {snow: [ice]}", "`words` has snow, which is none of its concepts"),
        ("words: [war]", "Category violence has no concepts"),
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


def asking(tmp_path, concepts, answers=(), text="description: Weather.\nconcepts: [rain, snow]", name="weather", **llm):
    """Table of concepts where the model gives lists of concepts in turn, and words to each that it is asked for."""
    turns = iter(concepts)

    def answer(request):
        message = request["messages"][0]["content"]
        if "single words" in message:
            return completion(json.dumps({"words": list(answers)}))
        return completion(json.dumps({"concepts": next(turns)}))

    folder = tmp_path / "concepts"
    folder.mkdir()
    (folder / f"{name}.yaml").write_text(text)
    server = serving(answer=answer)
    expand = {"expand_concepts": len(concepts[0])} if concepts else {}
    config = prompts_of(server, llm={"concepts": str(folder), **llm}, **expand)
    write_concepts(Category(name=name), config, tmp_path / "journal", tmp_path / "c.parquet")
    return read_parquet(tmp_path / "c.parquet"), server


def test_what_is_no_new_concept_is_refused_and_others_are_asked_for(tmp_path, capsys):
    turns = [
        ["Weather", "rains", "Rain-Snow", "hail storm", "It rains on a street.", "How to rain", "I'm sorry, no", "42"],
        ["hailstorms", "fog", "storm of hail", "wind that blows over all hills"],
        ["dust devil", "thunder", "frost", "haze", "drizzle", "mist"],
    ]
    table, server = asking(tmp_path, turns)
    assert table.concept.to_list() == [
        *("rain", "snow", "Rain-Snow", "hail storm", "fog", "dust devil", "thunder", "frost", "haze", "drizzle")
    ]
    assert Counter(table.source) == {"file": 2, "llm": 8}
    assert len(server.requests) == 3
    assert "Not these, which are known: rain, snow, Rain-Snow, hail storm." in str(server.requests[1])
    said = capsys.readouterr().out
    assert (
        "weather: 8 of 8 concepts that were asked for came, in 3 requests; not used: 4 known, 3 sentence, 1 refusal"
        in said
    )
    assert "1 no letters" in said


def test_a_model_that_has_no_more_concepts_is_asked_a_few_times(tmp_path, capsys):
    table, server = asking(tmp_path, [["fog", "rain"], ["fog"], ["rain"], ["snow"], ["never asked"]])
    assert table.concept.to_list() == ["rain", "snow", "fog"]
    assert len(server.requests) == 4
    assert "1 of 2 concepts that were asked for came, in 4 requests; not used: 4 known" in capsys.readouterr().out


def test_a_category_for_which_the_model_knows_nothing_says_what_to_do(tmp_path):
    turns = [["weather"]] * 4
    with pytest.raises(
        SafetyDPOError, match=r"Category weather has no concepts, and .* gave none .*: list some in .*yaml"
    ):
        asking(tmp_path, turns, text="description: What falls from the sky.")


def test_words_are_of_a_category_or_of_its_concepts_and_the_model_may_add_some(tmp_path):
    text = "description: Weather.\nconcepts: [rain, snow]\nwords: {rains: [wet, shower]}"
    answers = ["showers", "drizzle", "it is raining on a street", "Drizzles", "soaked", "flake"]
    table, server = asking(tmp_path, [], answers, text, words=2)
    assert table["words"].to_list() == ["wet, shower, drizzle, soaked", "showers, drizzle"]
    assert table.words_source.to_list() == ["file, llm", "llm"]
    assert "Not these, which are known: rain, wet, shower." in server.requests[0]["messages"][0]["content"]
    assert read_concepts(tmp_path / "c.parquet")["snow"] == ["snow", "showers", "drizzle"]


def test_words_of_a_category_are_of_every_concept(tmp_path):
    text = "description: Weather.\nconcepts: [rain, snow]\nwords: [wet, cold]"
    table, server = asking(tmp_path, [], text=text)
    assert table["words"].to_list() == ["wet, cold", "wet, cold"]
    assert server.requests == []


def test_the_shipped_words_add_to_the_forms_of_their_concept():
    for path in sorted((ROOT / "config/concepts").glob("*.yaml")):
        file = concept_file(path.stem, LLM(model="m", concepts=str(path.parent)))
        assert list(file.words) == file.concepts
        for concept in file.concepts:
            assert not any(spellings(word) & spellings(concept) for word in file.words_of(concept))
