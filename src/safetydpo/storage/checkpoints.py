"""States of a long computation on disk, to go on from after a crash: each whole or not there, the newest two kept."""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.files import remove_unfinished, whole_file
from safetydpo.storage.locks import remove_empty

KEPT = 2


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"beta": 1}} -> {"train.beta": 1}."""
    flat = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


class Checkpoints:
    """Files <stem>-<number>-<hash of the bytes>.pt of a folder.

    made: what the computation depends on, by (nested) keys of the config; a state of another `made` is refused.
    """

    def __init__(self, folder: Path | str, made: dict[str, Any], stem: str = "step") -> None:
        self.folder, self.made, self.stem = Path(folder), _flat(made), stem

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.stem}-*.pt"), reverse=True)

    def save(self, number: int, state: dict[str, Any]) -> Path:
        """Write a state of tensors, numbers, strings, lists and dicts; remove all but the newest two."""
        buffer = io.BytesIO()
        torch.save({"made": self.made, "number": number, "state": state}, buffer)
        data = buffer.getbuffer()
        remove_unfinished(self.folder, f"{self.stem}-")
        path = self.folder / f"{self.stem}-{number:07d}-{_digest(data)}.pt"
        with whole_file(path) as temporary:
            temporary.write_bytes(data)
        for old in self._paths()[KEPT:]:
            old.unlink(missing_ok=True)
        return path

    def load(self, main: bool = True) -> tuple[int, dict[str, Any]] | None:
        """The newest whole state and its number, or None.

        A damaged file is named in a warning and (by the `main` process) removed, and the one before it is taken.
        SafetyDPOError where the state is of another config: it names the key.
        """
        for path in self._paths():
            try:
                data = path.read_bytes()
            except FileNotFoundError:  # the main process has removed it
                continue
            if not path.stem.endswith(_digest(data)):
                print(f"WARNING: checkpoint {path} is damaged; going on from the one before it.")
                if main:
                    path.unlink(missing_ok=True)
                continue
            kept = torch.load(io.BytesIO(data), weights_only=True)
            self._refuse_others(path, kept["made"])
            return kept["number"], kept["state"]
        return None

    def _refuse_others(self, path: Path, made: dict[str, Any]) -> None:
        for key in [*self.made, *made]:
            here, there = self.made.get(key), made.get(key)
            if here != there:
                back = f", or set {key} back to go on" if key.startswith("train.") else ""
                raise SafetyDPOError(
                    f"Checkpoint {path} was made with {key} = {there}, this run has {here}: "
                    f"delete the folder {self.folder} to start over{back}."
                )

    def clear(self) -> None:
        """The computation is done: remove every state in the folder, and the folder where nothing else is in it."""
        for path in self.folder.glob("*.pt"):
            path.unlink(missing_ok=True)
        remove_unfinished(self.folder, "")
        remove_empty(self.folder)


def _digest(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
