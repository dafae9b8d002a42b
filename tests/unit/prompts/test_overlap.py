"""Forms of a word, shared words, and near duplicates: against a slow search of all texts."""

import random

import pytest

from safetydpo.prompts.overlap import Near, content_words, overlap, spellings, stem

FORMS = [
    "dog dogs",
    "fight fights fighting",
    "bully bullies bullied bullying",
    "use uses used using",
    "run runs running",
    "kill kills killed killing",
    "dance dances danced dancing",
    "knife knives",
    "wolf wolves",
    "glove gloves",
    "house houses",
    "box boxes",
    "glass glasses",
    "tie ties tied",
    "seed seeds",
    "bleed bleeds bleeding",
]


def test_regular_forms_of_a_word_are_one_and_other_words_are_others():
    stems = [{stem(form) for form in forms.split()} for forms in FORMS]
    assert [len(found) for found in stems] == [1] * len(FORMS)
    others = {stem(word) for word in ("king", "ring", "thing", "bed", "bus", "war", "gas", "see", "sea", "red")}
    assert len(others) == 10
    assert not others & set().union(*stems)


def test_words_that_say_nothing_of_the_scene_do_not_count():
    assert content_words("The dog’s hats are ON a table, with ＴＷＯ umbrellas.") == {
        *("dog", "hat"),
        *map(stem, ("table", "two", "umbrella")),
    }
    assert content_words("a man with no hat") != content_words("a man with a hat")
    assert content_words("...") == content_words("of the") == frozenset()
    assert content_words("一只狗") == {"一", "只", "狗"}  # no spaces: a character is a word


def test_overlap_is_the_share_of_all_words_that_both_have():
    assert overlap({"a", "b", "c"}, {"b", "c", "d"}) == 0.5
    assert overlap({"a"}, {"a"}) == 1
    assert overlap({"a"}, {"b"}) == overlap(set(), set()) == 0


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_what_is_found_is_the_first_of_those_that_a_slow_search_finds(threshold):
    rng = random.Random(1)
    texts = [frozenset(rng.choices("abcdefghijkl", k=rng.randint(0, 12))) for _ in range(400)]
    near, hits = Near[int](threshold), 0
    for i, words in enumerate(texts):
        wanted = next((j for j in range(i) if overlap(words, texts[j]) >= threshold), None)
        assert near.find(words) == wanted
        hits += wanted is not None
        near.add(i, words)
    assert 20 < hits < 400


def test_a_text_of_the_last_size_in_thousands_is_found():
    near = Near[int](0.8)
    for i in range(5000):
        near.add(i, {f"{i}", f"{i + 1}", f"{i + 2}", "dog", "park"})
    assert near.find({"4000", "4001", "4002", "dog", "park"}) == 4000
    assert near.find({"4000", "4001", "4002", "dog"}) == 4000  # 4 of 5
    assert near.find({"4000", "4001", "hat", "dog", "park"}) is None  # 4 of 6


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("self-harm", "selfharm", True),
        ("Self Harm", "self-harms", True),
        ("use of umbrellas", "umbrella use", True),
        ("barking", "bark", True),
        ("big dog", "dog", False),
        ("dog", "cat", False),
    ],
)
def test_spellings_of_a_term(one, other, same):
    assert bool(spellings(one) & spellings(other)) is same
