"""Streams: which requests a concept sends, and that the order of answers changes no pair."""

import itertools
import random

from safetydpo.prompts.stream import Ask, Candidate, Seen, Stream, across

NAMES = ("dog", "cat", "hill", "lake", "tree", "boat", "lamp", "door", "road", "bird", "fish", "star")


def stream(quota=4, size=2, patience=3, threshold=None):
    return Stream("hats", quota, size, patience, Seen(threshold))


def pair(name, fault=""):
    return Candidate("hats", f"{name} with hat", name, fault)


def measured(found):
    """Every pair is near enough."""


def test_a_concept_asks_for_its_quota_and_then_for_what_was_lacking():
    of = stream(25, 10)
    first = of.asks()
    assert [(ask.number, ask.count, ask.avoid) for ask in first] == [(0, 10, ()), (1, 10, ()), (2, 5, ())]
    assert of.answered(first[1], [pair(f"cat {i}") for i in range(10)], measured) == []  # the one before is not there
    assert of.kept == []
    found = [pair(f"dog {i}", "empty" if i < 3 else "") for i in range(10)]
    assert of.answered(first[0], found, measured) == []  # 3 are missing, but one request is under way
    assert [p.safe_prompt for p in of.kept][6:8] == ["dog 9", "cat 0"]
    more = of.answered(first[2], [pair(f"boat {i}") for i in range(5)], measured)
    # 3 missing, (22 + 50) of (25 + 50) become pairs: 3.1
    assert [(ask.number, ask.count, len(ask.avoid)) for ask in more] == [(3, 3, 20)]
    assert of.answered(more[0], [pair(f"lake {i}") for i in range(3)], measured) == []
    assert (of.missing, len(of.kept), len(of.rejected)) == (0, 25, 3)


def test_a_reply_that_was_none_does_not_make_it_ask_for_more():
    of = stream(4, 4)
    more = of.answered(of.asks()[0], [Candidate("hats", "", fault="malformed")], measured)
    assert [ask.count for ask in more] == [4]
    more = of.answered(more[0], [pair("a", "empty"), pair("b", "empty"), pair("c"), pair("d", "empty")], measured)
    assert [ask.count for ask in more] == [3]  # 3 missing, (1 + 20) of (4 + 20) become pairs: 3.4


def test_after_two_requests_without_a_pair_it_asks_for_five_times_what_is_missing():
    of = stream(4, 10, patience=9)
    more = of.answered(of.asks()[0], [pair(f"dog {i}", "empty") for i in range(4)], measured)
    assert [ask.count for ask in more] == [4]  # 4 / (50 / 54)
    more = of.answered(more[0], [pair(f"cat {i}", "empty") for i in range(4)], measured)
    assert [ask.count for ask in more] == [10, 10]


def test_a_whole_request_is_sent_while_others_are_under_way():
    of = stream(100, 10)
    first = of.asks()
    assert len(first) == 10
    assert of.answered(first[0], [pair(f"dog {i}", "empty" if i % 2 else "") for i in range(10)], measured) == [
        # 95 missing, (5 + 50) of (10 + 50) become pairs: 103.6, less 90 under way: one whole request
        Ask(of, 10, 10, tuple(f"dog {i} with hat" for i in range(0, 10, 2)))
    ]


def test_a_concept_without_a_new_pair_is_given_up_and_later_answers_change_nothing():
    of = stream(8, 2, patience=2)
    first = of.asks()
    for ask in first[:2]:
        more = of.answered(ask, [pair("dog", "empty")], measured)
    assert of.dry
    assert more == []
    assert of.answered(first[2], [pair("cat")], measured) == []
    assert of.kept == []


def test_repeats_within_and_between_requests_are_settled_in_order():
    of = stream(4, 2)
    first = of.asks()
    of.answered(first[1], [pair("dog"), pair("cat")], measured)
    of.answered(first[0], [pair("dog"), Candidate("hats", "The DOG, with a hat!", "x")], measured)
    assert [p.safe_prompt for p in of.kept] == ["dog", "cat"]
    assert [(p.unsafe_prompt, p.safe_prompt, p.fault) for p in of.rejected] == [
        ("The DOG, with a hat!", "", "duplicate"),
        ("dog with hat", "", "duplicate"),
    ]


def test_near_duplicates_have_most_words_in_common():
    of = stream(9, 9, threshold=0.75)
    texts = (
        "red dog on hill with hat",
        "red dogs on a hill with hats",
        "blue dog on hill with hat",
        "old man with hat",
    )
    # content words: red dog hill hat; the same; blue dog hill hat (3 of 5 in common); old man hat
    of.answered(of.asks()[0], [Candidate("hats", text, text[:8]) for text in texts], measured)
    assert [p.unsafe_prompt for p in of.kept] == [texts[0], texts[2], texts[3]]
    assert [(p.fault, p.detail) for p in of.rejected] == [("near duplicate", f"of: {texts[0]}")]


def test_what_counts_as_seen_is_no_pair():
    seen = Seen(None)
    seen.note(Candidate("", "dog with hat"))
    of = Stream("hats", 2, 2, 3, seen)
    of.answered(of.asks()[0], [pair("dog"), pair("cat")], measured)
    assert [p.safe_prompt for p in of.kept] == ["cat"]


def test_a_pair_that_is_too_far_is_seen_but_not_kept():
    def far(found):
        for one in found:
            one.fault = "too far" if one.safe_prompt == "dog" else ""

    of = stream(2, 3)
    of.answered(of.asks()[0], [pair("dog"), pair("cat"), pair("dog")], far)
    assert [p.fault for p in of.rejected] == ["too far", "duplicate"]


def test_a_prompt_of_two_concepts_is_the_firsts_and_the_second_asks_again():
    one, two = stream(2, 2), stream(2, 2)
    one.answered(one.asks()[0], [pair("dog"), pair("cat")], measured)
    two.answered(two.asks()[0], [pair("hill"), pair("dog")], measured)
    across([one, two], Seen(None))
    assert [p.safe_prompt for p in one.kept + two.kept] == ["dog", "cat", "hill"]
    assert [p.fault for p in two.rejected] == ["duplicate"]
    assert [[ask.count for ask in of.asks()] for of in (one, two)] == [[], [1]]


def test_at_the_budgets_end_what_is_there_is_settled():
    of = stream(6, 2)
    first = of.asks()
    of.answered(first[2], [pair("dog")], measured)
    of.answered(first[1], [pair("cat")], measured)
    of.close(measured)
    assert [p.safe_prompt for p in of.kept] == ["cat", "dog"]


def run(order):
    """Kept and rejected of a whole stream whose answers come in an order, and its requests."""
    of, asked, waiting = stream(12, 2, patience=9, threshold=0.9), [], []
    waiting += of.asks()
    while waiting:
        ask = waiting.pop(order.randrange(len(waiting)))
        asked.append((ask.number, ask.count, ask.avoid))
        draw = random.Random(ask.number)
        found = [pair(" ".join(draw.sample(NAMES, 2)), draw.choice(["", "", "empty"])) for _ in range(ask.count)]
        waiting += of.answered(ask, found, measured)
    return list(map(vars, of.kept)), list(map(vars, of.rejected)), sorted(asked)


def test_the_order_of_answers_changes_nothing():
    first, *others = (run(random.Random(turn)) for turn in range(20))
    assert len(first[0]) >= 12
    assert len(first[2]) > 6
    for other in others:
        for mine, its in itertools.zip_longest(first, other):
            assert str(mine) == str(its)
