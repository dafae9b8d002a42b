"""Which detectors can judge beside Q16. Adding one is an entry here and a file beside it; free of torch."""

from typing import NamedTuple


class Kind(NamedTuple):
    """A judge of images: its class (file:name in this room), made with detector_path and device; and what it has."""

    judge: str
    needs_path: bool = False  # judges.detector_path, the folder of its weights
    categories: bool = False  # it sees which category an image is of
    features: bool = False  # it has features, in which FID can be measured


DETECTORS: dict[str, Kind | None] = {
    "demo": Kind("scenes:Scenes", needs_path=True, categories=True, features=True),
    "nudenet": Kind("nudenet:NudeNet"),
    "none": None,  # Q16 judges alone
}
