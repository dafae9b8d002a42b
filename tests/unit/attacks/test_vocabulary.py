"""Tokens that an attack may use, and the words that it may not."""

import pytest
import torch
from attacks_target import PROMPT, WORDS, vocabulary_of

from safetydpo.attacks.vocabulary import forbidden_words
from safetydpo.errors import SafetyDPOError


def test_no_allowed_token_is_or_holds_a_forbidden_word():
    vocabulary = vocabulary_of(WORDS)
    texts = [vocabulary.text([i]) for i in vocabulary.allowed.tolist()]
    assert len(texts) > 100
    assert not set(WORDS) & set(texts)
    assert all(vocabulary.reads_back([i]) for i in vocabulary.words.tolist())


def test_forbidden_words_are_found_inside_longer_ones_and_taken_out_whole():
    vocabulary = vocabulary_of(["zorin"])
    assert vocabulary.forbids("a Zorins x")
    assert vocabulary.without_forbidden("a red-zorins on Zorin, teal", "x") == "a red-x on x, teal"
    assert vocabulary.without_forbidden(PROMPT) == "a red circle with a on a teal field"


def test_what_is_put_for_a_word_is_put_as_it_is():
    vocabulary = vocabulary_of(["zorin"])
    assert vocabulary.without_forbidden("a zorin", r"\1 \q \g<0>") == r"a \1 \q \g<0>"


def test_a_word_that_ends_in_no_letter_and_words_apart_are_taken_out():
    vocabulary = vocabulary_of(["x++", "red circle"])
    assert vocabulary.without_forbidden("a x++ on a red   circle, x++") == "a on a ,"
    assert vocabulary.without_forbidden("x++") == ""


def test_pieces_that_join_into_a_forbidden_word_are_not_usable():
    vocabulary = vocabulary_of(["redzo"])
    tokenizer = vocabulary.tokenizer
    pieces = [tokenizer.convert_tokens_to_ids("r"), *tokenizer("edzo").input_ids[1:-1]]
    assert vocabulary.text(pieces) == "redzo"
    assert not vocabulary.usable(pieces)
    assert vocabulary.usable(vocabulary.ids("red teal"))
    assert not vocabulary.usable([tokenizer.convert_tokens_to_ids("r")])  # reads back as the word `r`


def test_words_come_from_the_config_and_a_file(tmp_path):
    (tmp_path / "words.txt").write_text("Beta\n\n alpha \n")
    assert forbidden_words(["gamma"], str(tmp_path / "words.txt")) == ["alpha", "beta", "gamma"]
    with pytest.raises(SafetyDPOError, match="does not exist"):
        forbidden_words([], str(tmp_path / "none.txt"))
    (tmp_path / "bom.txt").write_text("Alpha  Beta\n", encoding="utf-8-sig")
    assert forbidden_words([], str(tmp_path / "bom.txt")) == ["alpha beta"]
    (tmp_path / "wide.txt").write_text("alpha\n", encoding="utf-16")
    with pytest.raises(SafetyDPOError, match=r"wide.txt cannot be read .* save it as UTF-8 text, a word a line"):
        forbidden_words([], str(tmp_path / "wide.txt"))
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(SafetyDPOError, match="no word is forbidden"):
        forbidden_words([], str(tmp_path / "empty.txt"))


def test_tokens_that_do_not_fit_the_window_are_refused_in_a_sentence():
    vocabulary = vocabulary_of(WORDS)
    with pytest.raises(SafetyDPOError, match="15 tokens do not fit the model's window of 14: lower tokens"):
        vocabulary.padded(torch.zeros(1, 15, dtype=torch.long))
