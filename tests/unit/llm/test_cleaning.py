"""What a model writes around a prompt is taken off; what belongs to the prompt stays."""

import pytest

from safetydpo.llm.cleaning import cleaned

DRESSED = [
    "a dog",
    "  a dog \n",
    "2. a dog",
    "2) a dog",
    "(2) a dog",
    "[2] a dog",
    "#2: a dog",
    "b) a dog",
    "- a dog",
    "• a dog",
    "> a dog",
    "## a dog",
    '"a dog"',
    '"a dog",',
    "'a dog'.",
    "“a dog”",
    "«a dog»",
    "„a dog“",
    "「a dog」",
    "`a dog`",
    "**a dog**",
    "*a dog*",
    "_a dog_",
    "__a dog__",
    "```\na dog\n```",
    '"a dog',
    'a dog"',
    "a\ndog",
    "a\x00 dog\ufeff",
    "a dog<|im_end|>",
    "a dog</s>",
    "a dog<end_of_turn>",
    "Safe prompt: a dog",
    "unsafe prompt: a dog",
    "Prompt 3: a dog",
    "Prompt 3 - a dog",
    "Prompt: a dog",
    "SCENE: a dog",
    "Output: a dog",
    "Answer: a dog",
    "Concept: a dog",
    "Safe: a dog",
    "Sure! Here is the safe prompt: a dog",
    '1. **Safe prompt:** "a dog"',
    '- **Prompt 12:** *"a dog"*',
    '3. Scene 3: `"a dog"`,',
]


@pytest.mark.parametrize("text", DRESSED)
def test_what_stands_around_a_prompt_goes(text):
    assert cleaned(text) == "a dog"


HONEST = [
    "3 dogs in a park",
    "1.5 metres of snow",
    "1945. A street",
    "9:30 in the morning: a street",
    'A sign that says "STOP"',
    '"STOP" and "GO" on two signs',
    '"STOP" and "GO"',
    "'70s disco, people dancing",
    "the dogs' park",
    'a nail of 5"',
    'a nail of 5" on a table',
    "a 2*3 grid and a 4*5 grid",
    "a file named dog_in_park_2",
    "prompt answers of a teacher",
    "the scene of a play - two dogs",
    "answering machine: a red one",
    "a-frame house",
    "#1 on the podium",
    "dog (a small one)",
]


@pytest.mark.parametrize("text", HONEST)
def test_what_belongs_to_a_prompt_stays(text):
    assert cleaned(text) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a **red** dog and a *blue* cat", "a red dog and a blue cat"),
        ('"a dog with a sign "STOP""', 'a dog with a sign "STOP"'),
        ("'a dog's day'", "a dog's day"),
        ("a \ud83d dog", "a � dog"),
        ("1.A dog", "A dog"),
    ],
)
def test_parts_of_a_prompt_are_cleaned(text, wanted):
    assert cleaned(text) == wanted


@pytest.mark.parametrize(
    "text", ["", " \n", "2.", "-", '""', "**", "```", "Safe prompt:", "1. Prompt 1:", "<|eot_id|>"]
)
def test_nothing_is_left_of_what_is_only_around(text):
    assert cleaned(text) == ""


@pytest.mark.parametrize(
    "text", [*DRESSED, *HONEST, '""a dog""', "1. 2. - a dog", '"', "'a' 'b'", '“"a dog"”', "*_a dog_*"]
)
def test_cleaning_twice_changes_nothing(text):
    assert cleaned(cleaned(text)) == cleaned(text)


@pytest.mark.parametrize("text", ["- " * 50_000, "Prompt: " * 20_000, "1. " * 50_000 + "a dog", "*" * 100_000])
def test_a_model_that_runs_wild_costs_no_time(text):
    assert cleaned(text) in ("", "a dog")
