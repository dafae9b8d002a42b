"""Every answered request, on disk at once: what was paid for is never asked again."""

import json
import os
from pathlib import Path
from typing import Any

from safetydpo.errors import SafetyDPOError
from safetydpo.llm.replies import Reply


class Journal:
    """A file of JSON lines, one an answer, found by the key of its request; only keys and offsets are in memory.

    A last line that a kill or a full disk cut short is dropped.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.offsets: dict[bytes, int] = {}
        self.plain = False  # the server does not know structured output
        self.file = self.path.open("a+b", buffering=0)
        self.end = self._read()
        self.file.truncate(self.end)

    def _read(self) -> int:
        offset = 0
        self.file.seek(0)
        for line in iter(self.file.readline, b""):
            try:
                record = json.loads(line)
            except ValueError:
                if line.endswith(b"\n"):
                    raise SafetyDPOError(f"{self.path} is damaged: delete it (its answers are asked again).") from None
                break
            if "plain" in record:
                self.plain = True
            else:
                self.offsets[bytes.fromhex(record["key"])] = offset
            offset += len(line)
        return offset

    def get(self, key: bytes) -> Reply | None:
        """The answer to a request, if there is one."""
        if key not in self.offsets:
            return None
        self.file.seek(self.offsets[key])
        record = json.loads(self.file.readline())
        return Reply(**{name: record[name] for name in Reply._fields})

    def put(self, key: bytes, reply: Reply) -> None:
        """Keep an answer; a kill right after this call loses nothing."""
        self.offsets[key] = self._write({"key": key.hex(), **reply._asdict()})

    def note_plain(self) -> None:
        """Remember that the server wants no schema."""
        self.plain = True
        self._write({"plain": True})

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
        self.end += len(line)
        return begin

    def close(self) -> None:
        """Force the file to disk and close it."""
        os.fsync(self.file.fileno())
        self.file.close()


def tokens_of(path: Path) -> tuple[int, int]:
    """Tokens sent and written in the answers of a journal."""
    sent = written = 0
    for line in path.read_bytes().splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the last line of a killed job
            continue
        sent, written = sent + record.get("sent", 0), written + record.get("written", 0)
    return sent, written


def spent_in(folder: Path) -> int:
    """Tokens of all journals of a run, which its budget is for."""
    return sum(sum(tokens_of(path)) for path in folder.glob("*.jsonl"))
