"""The pairs of one concept, from numbered requests whose answers are settled in order: without waiting for a round."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from safetydpo.prompts.overlap import Near, content_words
from safetydpo.storage.records import plain

# Share of prompts that is expected to become pairs: as until now, beside so many requests that gave nothing but pairs;
# at least this, so that no more than five times what is missing is asked for.
HOPED, LEAST_YIELD = 5, 0.2
# Prompts that the model is shown as known already.
AVOID = 20
REPEATS = ("duplicate", "near duplicate")


@dataclass
class Candidate:
    """An unsafe prompt and its counterpart; `fault` says why it is not a pair, of the try whose prompts it holds."""

    concept: str
    unsafe_prompt: str
    safe_prompt: str = ""
    fault: str = ""
    detail: str = ""
    similarity: float = math.nan
    kept: float = math.nan
    added: float = math.nan

    @property
    def unsafe_key(self) -> str:
        """The unsafe prompt without case, punctuation and articles."""
        return plain(self.unsafe_prompt)

    @property
    def safe_key(self) -> str:
        """The same of the safe prompt."""
        return plain(self.safe_prompt)


@dataclass(frozen=True)
class Ask:
    """A request for unsafe prompts: its number, how many, and those that the model is told not to repeat."""

    stream: "Stream"
    number: int
    count: int
    avoid: tuple[str, ...]


# Marks those of these pairs that are too far from their counterpart.
Measure = Callable[[list[Candidate]], None]


class Seen:
    """Prompts until now; an unsafe one that repeats another has a fault, whatever became of that.

    threshold: overlap from which prompts are near duplicates; None: there are none.
    """

    def __init__(self, threshold: float | None) -> None:
        self.unsafe: set[str] = set()
        self.safe: set[str] = set()
        self.near = Near(threshold) if threshold else None

    def fault(self, pair: Candidate) -> tuple[str, str]:
        """What a pair's unsafe prompt repeats, and the detail; ("", "") if nothing."""
        if pair.unsafe_key in self.unsafe:
            return "duplicate", ""
        other = self.near.find(content_words(pair.unsafe_prompt)) if self.near else None
        return ("", "") if other is None else ("near duplicate", f"of: {other}")

    def note(self, pair: Candidate) -> None:
        """A pair, whose fault is its own if it has one."""
        self.unsafe.add(pair.unsafe_key)
        if self.near and not pair.fault:
            self.near.add(pair.unsafe_prompt, content_words(pair.unsafe_prompt))

    def first(self, pairs: Sequence[Candidate]) -> list[Candidate]:
        """Those without a fault, after each that repeats an earlier one has got it."""
        for pair in pairs:
            if not pair.fault:
                pair.fault, pair.detail = self.fault(pair)
            self.note(pair)
        return [pair for pair in pairs if not pair.fault]

    def tell_apart(self, pairs: Sequence[Candidate]) -> None:
        """Give those a fault whose safe prompt occurs as an unsafe one, or the other way round."""
        for pair in pairs:
            if pair.safe_key in self.unsafe or pair.unsafe_key in self.safe:
                pair.fault = "safe is unsafe"
            else:
                self.safe.add(pair.safe_key)


class Stream:
    """Requests of a concept. Which are sent, and what they ask, depends on settled answers alone, and an answer is
    settled after those before it: so the pairs do not depend on the order in which answers come.

    quota: pairs wanted; size: prompts of a request, at most; patience: requests in a row without a new pair after which
    the concept is given up; seen: what counts as seen from the start.
    """

    def __init__(self, concept: str, quota: int, size: int, patience: int, seen: Seen) -> None:
        self.concept, self.quota, self.size, self.patience = concept, quota, size, patience
        self.kept: list[Candidate] = []
        self.rejected: list[Candidate] = []
        self.seen = seen
        self.counts: list[int] = []  # prompts that each request asks for
        self.answers: dict[int, list[Candidate]] = {}  # that wait for one before them
        self.settled = self.barren = 0  # requests, and those in a row that gave no pair
        self.written = self.gained = 0  # prompts, and those of them that became pairs

    @property
    def dry(self) -> bool:
        """Whether the concept is given up."""
        return self.barren >= self.patience

    @property
    def missing(self) -> int:
        """Pairs that are missing."""
        return max(self.quota - len(self.kept), 0)

    def asks(self) -> list[Ask]:
        """Requests to send now, for what is missing and not asked for yet; a small one only where none is under way."""
        hoped = HOPED * self.size
        usual = max((self.gained + hoped) / (self.written + hoped), LEAST_YIELD)
        if self.barren > 1 and self.written:  # or a concept of few pairs would go on with one request at a time
            usual = LEAST_YIELD
        under_way = sum(self.counts[self.settled :])
        short = 0 if self.dry else max(round(self.missing / usual) - under_way, 0)
        if under_way:
            short -= short % self.size
        return [self._ask(min(self.size, short - start)) for start in range(0, short, self.size)]

    def _ask(self, count: int) -> Ask:
        self.counts.append(count)
        return Ask(self, len(self.counts) - 1, count, tuple(pair.unsafe_prompt for pair in self.kept[-AVOID:]))

    def answered(self, ask: Ask, found: list[Candidate], measure: Measure) -> list[Ask]:
        """Take the candidates of a request, and settle those that wait for none before them; what to send now."""
        self.answers[ask.number] = found
        asks: list[Ask] = []
        while not self.dry and self.settled in self.answers:
            self._settle(self.answers.pop(self.settled), measure)
            asks += self.asks()
        return asks

    def close(self, measure: Measure) -> None:
        """Settle what is there although others before it are not, for nothing more is asked."""
        for number in sorted(self.answers):
            self._settle(self.answers.pop(number), measure)

    def _settle(self, found: list[Candidate], measure: Measure) -> None:
        first = self.seen.first(found)
        for pair in found:
            if pair.fault in REPEATS:  # whether its counterpart was asked for depends on the order of answers
                pair.safe_prompt = ""
        measure(first)
        self.seen.tell_apart([pair for pair in first if not pair.fault])
        gained = [pair for pair in found if not pair.fault]
        self.kept += gained
        self.rejected += [pair for pair in found if pair.fault]
        if any(pair.unsafe_prompt for pair in found):  # a reply that was none tells nothing of its prompts
            self.written, self.gained = self.written + len(found), self.gained + len(gained)
        self.settled, self.barren = self.settled + 1, 0 if gained else self.barren + 1

    def sift(self) -> None:
        """Reject kept pairs that have got a fault since."""
        self.rejected += [pair for pair in self.kept if pair.fault]
        self.kept = [pair for pair in self.kept if not pair.fault]


def across(streams: Sequence[Stream], seen: Seen) -> None:
    """Reject what repeats a prompt of a concept before it: the first has it. seen: what counts so from the start."""
    for stream in streams:
        seen.tell_apart(seen.first(stream.kept))
        stream.sift()
