"""Tokens that an attack may use: text that reads back as the same tokens and holds no forbidden word."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.models.families.family import Readers


def forbidden_words(words: Iterable[str], path: str | None) -> list[str]:
    """The words of the config and of the file, in lower case; SafetyDPOError where the file has none."""
    found = list(words)
    if path:
        if not Path(path).is_file():
            raise SafetyDPOError(f"attacks.forbidden_path: {path} does not exist; it is a file of words, a line each.")
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except (UnicodeDecodeError, OSError) as error:
            raise SafetyDPOError(
                f"attacks.forbidden_path: {path} cannot be read ({error}): save it as UTF-8 text, a word a line."
            ) from None
        found += text.splitlines()
    found = sorted({" ".join(word.lower().split()) for word in found} - {""})
    if not found:
        raise SafetyDPOError("attacks: no word is forbidden: set attacks.forbidden, or put words into forbidden_path.")
    return found


Sequences = torch.Tensor | Sequence[Sequence[int]]  # (n, k), or n lists of any lengths


class Vocabulary:
    """The tokens of text encoders, with forbidden words. Token sequences (n,) are without start, end and padding.

    room: how many of them a text encoder reads.
    """

    def __init__(self, readers: Readers, forbidden: Sequence[str]) -> None:
        self.tokenizer = tokenizer = readers.tokenizers[0]
        self.start, self.end = readers.start, readers.end
        self.room = readers.window - len(self.start) - len(self.end)
        if self.room < 1:
            raise SafetyDPOError(
                f"model.call.max_sequence_length: {readers.window} tokens leave none to a prompt: raise it."
            )
        self._forbidden = re.compile("|".join(re.escape(word) for word in forbidden))
        self._words = re.compile(rf"\w*(?:{self._forbidden.pattern})\w*", re.IGNORECASE)
        special = set(tokenizer.all_special_ids)
        texts = [tokenizer.decode([i]) for i in range(len(tokenizer))]
        usable = [i for i, text in enumerate(texts) if i not in special and text.strip().isascii() and text.strip()]
        self.allowed = torch.tensor([i for i in usable if not self.forbids(texts[i])])
        # tokens that are words of their own: of CLIP and T5 they read back, whatever stands beside them
        self.words = torch.tensor([i for i in self.allowed.tolist() if self.reads_back([i])])
        if not len(self.words):
            raise SafetyDPOError("attacks: the forbidden words leave no token of the model's tokenizer.")

    def forbids(self, text: str) -> bool:
        """Whether a forbidden word stands in the text, alone or in a longer word."""
        return bool(self._forbidden.search(text.lower()))

    def without_forbidden(self, prompt: str, put: str = "") -> str:
        """The prompt with `put` for each word that holds a forbidden one."""
        return " ".join(self._words.sub(lambda _: put, " ".join(prompt.split())).split())

    def count_forbidden(self, prompt: str) -> int:
        """How many words of the prompt hold a forbidden one."""
        return len(self._words.findall(prompt))

    def ids(self, prompt: str) -> list[int]:
        """Tokens of a prompt, cut to the window, without start and end."""
        return self.tokenizer(prompt, add_special_tokens=False, truncation=True, max_length=self.room).input_ids

    def text(self, ids: Sequence[int] | torch.Tensor) -> str:
        """The text of tokens."""
        return self.tokenizer.decode(list(map(int, ids)), skip_special_tokens=True).strip()

    def reads_back(self, ids: Sequence[int] | torch.Tensor) -> bool:
        """Whether the tokens' text is read as these tokens."""
        return self.ids(self.text(ids)) == list(map(int, ids))

    def usable(self, ids: Sequence[int] | torch.Tensor) -> bool:
        """Whether the tokens make a prompt that an attacker may type: it reads back and holds no forbidden word."""
        return self.reads_back(ids) and not self.forbids(self.text(ids))

    def padded(self, sequences: Sequences, pad: int | None = None) -> torch.Tensor:
        """(n, window) of n sequences, with start, end and padding (SDXL's second encoder has another `pad`)."""
        rows = sequences.tolist() if isinstance(sequences, torch.Tensor) else sequences
        if (longest := max(map(len, rows))) > self.room:
            raise SafetyDPOError(
                f"attacks: {longest} tokens do not fit the model's window of {self.room}: lower tokens."
            )
        fill = self.tokenizer.pad_token_id if pad is None else pad
        return torch.tensor(
            [[*self.start, *row, *self.end, *[fill] * (self.room - len(row))] for row in rows], dtype=torch.long
        )
