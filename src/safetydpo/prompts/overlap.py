"""Which words two texts share, in whatever form; and what an earlier text nearly is."""

import math
import re
import unicodedata
from collections.abc import Collection, Hashable
from functools import lru_cache
from typing import Generic, TypeVar

# Scripts without spaces: a character is a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W_{_UNSPACED}]+")
K = TypeVar("K", bound=Hashable)


def words_of(text: str) -> list[str]:
    """The words of a text in their order, without case and width of letters."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


# Articles, prepositions, pronouns and forms of `be` and `have`: what a scene is does not depend on them. Not `no` and
# `without`.
FUNCTION_WORDS = frozenset(
    words_of(
        "a an the and or but of in on at by to for from with into onto upon as is are was were be been being am has "
        "have had it its he she they them his her their him this that these those there who which while some i you we "
        "s t"
    )
)


@lru_cache(maxsize=2**15)
def stem(word: str) -> str:
    """What the regular forms of an English word have in common: `fight` of fights, fighting; no word of its own.

    As in Porter's first step: plural, -ing, -ed; then what spelling adds to them (e, a doubled consonant, v for f).
    """
    if len(word) < 4:
        return word[:-1] if len(word) == 3 and word.endswith("e") else word
    if word.endswith(("ies", "ied")):
        word = word[:-3] + "y" if len(word) > 4 else word[:-1]
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    elif (found := re.fullmatch(r"(.*[aeiouy].*)(?:ing|(?<!e)ed)", word)) and len(found[1]) > 1:
        word = found[1]
    word = word[:-1] if word.endswith("e") and len(word) > 2 else word
    word = word[:-1] if word[-2:-1] == word[-1] and word[-1] not in "aeiouy" else word
    return word[:-1] + "f" if word.endswith("v") else word


def _stems(text: str) -> list[str]:
    return [stem(word) for word in words_of(text) if word not in FUNCTION_WORDS]


@lru_cache(maxsize=4096)
def content_words(text: str) -> frozenset[str]:
    """Stems of a text's words, without those that say nothing of the scene."""
    return frozenset(_stems(text))


def spellings(text: str) -> set[Hashable]:
    """What a term has in common with its other spellings: its parts as one word, and in any order."""
    return {"".join(_stems(text)), content_words(text)}


def overlap(a: Collection[str], b: Collection[str]) -> float:
    """Share of the words of both that are in each (Jaccard), 0 to 1; 0 where there are none."""
    both = len(set(a) & set(b))
    return both / (len(a) + len(b) - both) if both else 0.0


class Near(Generic[K]):
    """Texts, by their words, that are asked for what overlaps with another: exact, in some tens of microseconds.

    Texts of one size are a column of bits for each word. Sizes and threshold say how many words of what is asked for
    may be missing in a text, few; so the columns of its words, one after the other, leave the texts that miss no more.
    """

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self.sizes: dict[int, tuple[list[tuple[int, K]], dict[str, int]]] = {}
        self.count = 0

    def add(self, key: K, words: Collection[str]) -> None:
        """Know a text by its words."""
        keys, columns = self.sizes.setdefault(len(words), ([], {}))
        for word in words:
            columns[word] = columns.get(word, 0) | 1 << len(keys)
        keys.append((self.count, key))
        self.count += 1

    def find(self, words: Collection[str]) -> K | None:
        """Key of the first text added whose overlap is the threshold or more; None where there is none."""
        first: tuple[int, K] | None = None
        for size, (keys, columns) in self.sizes.items():
            spare = _spare(len(words), size, self.threshold)
            if spare < 0:
                continue
            left = [(1 << len(keys)) - 1] * (spare + 1)  # the texts that miss 0, 1, ... of the words so far, at most
            for word in words:
                column = columns.get(word, 0)
                for missed in range(spare, 0, -1):
                    left[missed] = left[missed] & column | left[missed - 1]
                left[0] &= column
                if not left[spare]:
                    break
            else:
                found = keys[(left[spare] & -left[spare]).bit_length() - 1]
                first = found if first is None or found[0] < first[0] else first
        return None if first is None else first[1]


@lru_cache(maxsize=4096)
def _spare(asked: int, size: int, threshold: float) -> int:
    """How many of the asked words a text of a size may lack to overlap enough; negative where it cannot."""
    fewest = math.ceil(threshold * max(asked, size))  # they share at least as many
    enough = (n for n in range(max(fewest - 1, 1), min(asked, size) + 1) if n / (asked + size - n) >= threshold)
    return asked - next(enough, asked + 1)
