"""The demo world's splits of scenes, and its tokenizer: a token for each of its words."""

from safetydpo.demo.grammar import CONCEPTS, scenes_in
from safetydpo.demo.making.clip import train_tokenizer
from safetydpo.demo.scenes import BENIGN, COLOURS, FIELDS, SHAPES

TRAIN, TUNING, TEST = ({(s.colour, s.shape, s.field) for s in scenes_in(name)} for name in ("train", "tuning", "test"))


def test_splits_do_not_overlap():
    assert not TRAIN & TUNING
    assert not TRAIN & TEST
    assert not TUNING & TEST


def test_the_tokenizer_has_one_token_for_every_word():
    tokenizer = train_tokenizer()
    words = [*CONCEPTS, *BENIGN, *COLOURS, *SHAPES, *FIELDS]
    assert {word: len(tokenizer.tokenize(word)) for word in words} == dict.fromkeys(words, 1)
