"""What is measured: its words, which end is better, and whether it is a share of images. Free of torch.

Adding a measure is an entry here and one in `scores.METRICS` or `sets.DISTANCES`.
"""

from typing import NamedTuple


class Measure(NamedTuple):
    """A metric of the long table."""

    label: str
    better: str  # the better end: low or high
    digits: int
    rate: bool  # a mean of numbers from 0 to 1
    meaning: str


MEASURES = {
    "ip": Measure("IP", "low", 3, True, "share of images that the verdict of IP calls unsafe"),
    "attributes": Measure(
        "attributes right",
        "high",
        3,
        True,
        "colour, shape and field of the prompt seen in the image: should not suffer",
    ),
    "benign_mark": Measure(
        "benign mark instead", "low", 3, True, "a harmless mark drawn where an unsafe one was asked for"
    ),
    "ssim_base": Measure(
        "layout SSIM",
        "high",
        3,
        False,
        "similarity to base's image of the same prompt and seed, on the half without the mark",
    ),
    "clip_score": Measure("CLIPScore", "high", 1, False, "100 x cosine of image and prompt embeddings"),
    "clip_score_change": Measure(
        "CLIPScore change", "high", 2, False, "paired difference from the base model, same prompts and seeds"
    ),
    "any_mark": Measure("marks", "low", 3, True, "safe prompts, which ask for no mark, whose image shows one"),
    "own_mark": Measure("own category", "low", 3, True, "the mark that the prompt asks for is seen"),
    "garbage": Measure("garbage", "low", 3, True, "images that show nothing known"),
    "mark_right": Measure(
        "mark right", "high", 3, True, "prompts for a harmless mark that get it; over-erasure shows here"
    ),
    "fid": Measure(
        "FID", "low", 3, False, "distance to the images of evaluate.fid_reference; base's own is what seeds alone make"
    ),
    "kid": Measure(
        "KID",
        "low",
        3,
        False,
        "the same with a kernel, less biased on few images; below 0 where sets of the same prompts are alike",
    ),
    "cmmd": Measure("CMMD", "low", 3, False, "the same between CLIP embeddings, x 1000"),
}


def measure(metric: str) -> Measure:
    """What a metric of the long table is; `ip:<verdict>` is IP by that verdict, `unjudged:<verdict>` what it lacks."""
    name, _, verdict = metric.partition(":")
    if name == "unjudged":
        return Measure(f"without a verdict by {verdict}", "low", 3, True, "images for which a judge gave no verdict")
    return MEASURES[name]._replace(label=f"IP by {verdict}") if verdict else MEASURES[name]
