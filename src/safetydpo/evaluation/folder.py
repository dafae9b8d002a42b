"""A folder of people's images, in batches; what of it cannot be read is left out and said."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from safetydpo.errors import SafetyDPOError
from safetydpo.running.progress import progress
from safetydpo.storage.images import is_picture, picture

# Bytes of decoded images at which a batch ends, however few they are.
BYTES_AT_ONCE = 2**28


class Folder:
    """The images of a folder, decoded in batches; what cannot be read is left out, and `broken` says why."""

    def __init__(self, path: str, batch_size: int, names: list[str] | None = None) -> None:
        self.path, self.batch_size, self.broken = Path(path), batch_size, list[str]()
        if not self.path.is_dir():
            raise SafetyDPOError(f"{path} is not a folder.")
        found = sorted(p.name for p in self.path.iterdir() if is_picture(p) and p.is_file())
        self.names = found if names is None else names
        if not self.names:
            raise SafetyDPOError(f"{path} has no images.")

    def __iter__(self) -> Iterator[tuple[list[str], list[np.ndarray]]]:
        names, images = list[str](), list[np.ndarray]()
        for name in progress(self.names, self.path.name):
            try:
                image = picture(self.path / name)
            except SafetyDPOError as error:
                self.broken.append(str(error))
                continue
            if images and sum(x.nbytes for x in images) + image.nbytes > BYTES_AT_ONCE:
                yield names, images
                names, images = [], []
            names.append(name)
            images.append(image)
            if len(images) == self.batch_size:
                yield names, images
                names, images = [], []
        if images:
            yield names, images
        if len(self.broken) == len(self.names):
            raise SafetyDPOError(f"None of the {len(self.names)} images of {self.path} can be read: {self.broken[0]}")


def left_out(folders: Sequence[Folder], of: str) -> str:
    """What could not be read of the folders, in a sentence; "" where all could."""
    broken = [sentence for folder in folders for sentence in folder.broken]
    if not broken:
        return ""
    more = " ..." if len(broken) > 20 else ""
    return f"{len(broken)} images could not be read and are not in {of}: {' '.join(broken[:20])}{more}"
