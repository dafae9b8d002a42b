"""Every answered request, on disk at once: what was paid for is never asked again."""

import json
import os
from pathlib import Path
from typing import Any

from safetydpo.errors import SafetyDPOError
from safetydpo.llm.replies import Reply, tokens, without_thoughts


class Journal:
    """A file of JSON lines, one an answer, found by the key of its request; only keys and offsets are in memory.

    Any process may read; one at a time writes, after `renew`.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.offsets: dict[bytes, int] = {}
        self.form = ""  # that the server was last asked in, because it refused a better one
        self.answered = False  # whether it has written anything in that form
        self.sent = self.written = 0  # tokens of all answers, and about as many as were lost without one
        self.lost = 0  # tries without an answer
        self.lines = self.end = 0  # as far as it is known
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise SafetyDPOError(
                f"Cannot open {self.path}, which keeps the server's answers: {error.strerror}."
            ) from None
        self._read()

    @property
    def spent(self) -> int:
        """Tokens that count for a budget."""
        return self.sent + self.written

    def renew(self) -> None:
        """Take in what others answered since, and drop a last line that a kill or a full disk cut short: for the one
        process that may write.
        """
        self._read()
        self.file.truncate(self.end)

    def _read(self) -> None:
        damaged: list[int] = []
        with self.path.open("rb") as file:  # with a buffer, unlike ours
            file.seek(self.end)
            for line in file:
                if not line.endswith(b"\n"):  # also where only the end of the line is missing: the next would join it
                    break
                try:
                    self._take(_record(line), self.end)
                except (ValueError, KeyError, TypeError):
                    damaged.append(self.lines + 1)
                self.lines, self.end = self.lines + 1, self.end + len(line)
        if damaged:
            lines = ", ".join(map(str, damaged[:10])) + (" ..." if len(damaged) > 10 else "")
            print(f"{self.path}: no answer can be read in line {lines}; what stood there is asked again")

    def _take(self, record: dict[str, Any], offset: int) -> None:
        """Take in a line; ValueError, KeyError or TypeError where it is none of ours."""
        if "plain" in record:  # of journals from before there were forms
            self._note("text")
        elif "form" in record:
            self._note(str(record["form"]))
        elif "lost" in record:
            self._lose(tokens(record.get("sent"), 0), tokens(record.get("written"), 0))
        else:
            self._know(bytes.fromhex(record["key"]), _reply(record), offset)

    def _know(self, key: bytes, reply: Reply, offset: int) -> None:
        self.offsets[key] = offset
        self.answered = self.answered or bool(reply.text and not reply.fault)
        self.sent, self.written = self.sent + reply.sent, self.written + reply.written

    def _lose(self, sent: int, written: int) -> None:
        self.lost, self.sent, self.written = self.lost + 1, self.sent + sent, self.written + written

    def _note(self, form: str) -> None:
        self.form, self.answered = form, False

    def get(self, key: bytes) -> Reply | None:
        """The answer to a request, if there is one."""
        if key not in self.offsets:
            return None
        self.file.seek(self.offsets[key])
        return _reply(_record(self.file.readline()))

    def put(self, key: bytes, reply: Reply) -> None:
        """Keep an answer; a kill right after this call loses nothing."""
        self._know(key, reply, self._write({"key": key.hex(), **reply._asdict()}))

    def note_form(self, form: str) -> None:
        """Remember the form that the server is asked in from now on."""
        self._note(form)
        self._write({"form": form})

    def note_lost(self, sent: int, written: int) -> None:
        """Count a try without an answer, which may have cost about so many tokens."""
        self._lose(sent, written)
        self._write({"lost": 1, "sent": sent, "written": written})

    def _write(self, record: dict[str, Any]) -> int:
        line, begin = json.dumps(record, ensure_ascii=False).encode() + b"\n", self.end
        try:
            written = self.file.write(line)
            if written != len(line):
                raise OSError(None, "no space left on device")
        except OSError as error:
            self.file.truncate(begin)
            raise SafetyDPOError(
                f"Cannot write {self.path}: {error.strerror}. Free space, then rerun; answers until now are kept."
            ) from None
        self.lines, self.end = self.lines + 1, self.end + len(line)
        return begin

    def close(self) -> None:
        """Force the file to disk and close it."""
        os.fsync(self.file.fileno())
        self.file.close()


def tokens_of(path: Path) -> tuple[int, int]:
    """Tokens sent and written in the answers of a journal, and lost without one."""
    sent = written = 0
    for line in path.read_bytes().splitlines():
        try:
            record = _record(line)
        except ValueError:  # the last line of a killed job
            continue
        sent += tokens(record.get("sent"), 0)
        written += tokens(record.get("written"), len(str(record.get("text", ""))) // 4)
    return sent, written


def spent_in(folder: Path) -> int:
    """Tokens of all journals of a run, which its budget is for."""
    return sum(sum(tokens_of(path)) for path in folder.glob("*.jsonl"))


def _record(line: bytes) -> dict[str, Any]:
    """What a line holds; ValueError where that is no record."""
    try:
        record = json.loads(line)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if not isinstance(record, dict):
        raise ValueError("no record")
    return record


def _reply(record: dict[str, Any]) -> Reply:
    """The answer in a record; KeyError or TypeError where there is none."""
    text, reason = record["text"], record["finish_reason"]
    if not isinstance(text, str) or not isinstance(reason, str):
        raise TypeError("an answer is a text")
    sent, written = tokens(record.get("sent"), 0), tokens(record.get("written"), len(text) // 4)
    return Reply(without_thoughts(text), reason, bool(record.get("refused")), sent, written)
