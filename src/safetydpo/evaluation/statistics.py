"""Means with bootstrap intervals, and distances between feature sets.

FID, KID and CMMD here are the published formulas; what goes in differs from published tables (docs/measures.md): a
method's images, some hundreds, against those of the method `evaluate.fid_reference` on the same prompts, in the
features of `judges.features` (CMMD: of `judges.clip_score`). They compare the methods of a run on a benchmark.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from safetydpo.errors import SafetyDPOError
from safetydpo.storage.finite import finite

DISTANCE_RESAMPLES = 60
CMMD_SIGMA = 10.0


class Estimate(NamedTuple):
    """A value with its 95 % interval and the number of images behind it."""

    value: float
    ci_low: float
    ci_high: float
    n: int


def bootstrap_mean(values: np.ndarray, resamples: int, seed: int) -> Estimate:
    """Mean of (n,) values, percentile bootstrap over images.

    Images are drawn one by one, also where several are of one prompt, which makes intervals too narrow; where all
    values are equal the interval has no width. SafetyDPOError where a value is NaN or infinite.
    """
    values = finite(np.asarray(values, dtype=np.float64), "Values to average", "score the images again")
    rng, n = np.random.default_rng(seed), len(values)
    size = max(1, 2_000_000 // n)
    means = [
        values[rng.integers(n, size=(min(size, resamples - start), n))].mean(1) for start in range(0, resamples, size)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high), n)


class _Given(torch.nn.Module):
    """Lets torchmetrics' distances take features instead of images."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features


def fid(features: torch.Tensor, reference: torch.Tensor) -> float:
    """Frechet distance between two feature sets (n, d), (m, d), of two images each or more.

    FID as published where the features are Inception's 2048. It grows as images get fewer, most where n < d.
    """
    metric = FrechetInceptionDistance(feature=_Given(features.shape[1]), input_img_size=(features.shape[1],))  # type: ignore[arg-type]
    metric.update(reference.float(), real=True)
    metric.update(features.float(), real=False)
    return float(metric.compute())


def kid(features: torch.Tensor, reference: torch.Tensor) -> float:
    """Kernel distance (unbiased MMD^2, cubic kernel) of all samples at once, as many of each set as the smaller has.

    Published (arXiv 1801.01401): the mean over 100 subsets of 1000. Both estimate the same; it can be below 0.
    """
    size = min(len(features), len(reference))
    metric = KernelInceptionDistance(feature=_Given(features.shape[1]), subsets=1, subset_size=size)
    metric.update(reference.float(), real=True)
    metric.update(features.float(), real=False)
    return float(metric.compute()[0])


def cmmd(embeddings: torch.Tensor, reference: torch.Tensor) -> float:
    """CMMD (arXiv 2401.09603): 1000 x squared MMD of CLIP embeddings of unit length, Gaussian kernel of width 10.

    The published estimator, each image beside itself too; published values are of CLIP ViT-L/14 at 336 pixels.
    """

    def kernel(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((-torch.cdist(x.double(), y.double()).square() / (2 * CMMD_SIGMA**2)).exp().mean())

    return 1000 * (kernel(embeddings, embeddings) + kernel(reference, reference) - 2 * kernel(embeddings, reference))


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean (d,) and covariance (d, d) of features (n, d); SafetyDPOError for a single image, which has none."""
    if len(features) < 2:
        raise SafetyDPOError("FID needs two images or more: one alone has no covariance.")
    finite(features, "Features of images", "the network's weights are damaged, or its arithmetic overflows")
    return features.mean(0, dtype=np.float64), np.cov(features.astype(np.float64), rowvar=False)


def frechet_distance(mu: np.ndarray, sigma: np.ndarray, other_mu: np.ndarray, other_sigma: np.ndarray) -> float:
    """Frechet distance between two Gaussians, which is FID when they are of Inception features."""
    for values in (mu, sigma, other_mu, other_sigma):
        finite(values, "Mean and covariance of features", "replace the statistics by whole ones")
    roots = torch.linalg.eigvals(torch.from_numpy(sigma @ other_sigma)).sqrt().real.sum()
    return float(np.square(mu - other_mu).sum() + np.trace(sigma) + np.trace(other_sigma) - 2 * roots)


def bootstrap_distance(
    distance: Callable[[torch.Tensor, torch.Tensor], float], features: np.ndarray, reference: np.ndarray, seed: int
) -> Estimate:
    """A distance with an interval from resampling `features`.

    Resampling repeats images, which by itself raises the distance; the interval is moved back by that much. `reference`
    stays as it is, so the nominal 95 % are 80 to 94 (simulated: docs/measures.md).
    """
    torch.manual_seed(seed)
    x, y = torch.from_numpy(features), torch.from_numpy(reference)
    value, n = distance(x, y), len(x)
    again = np.array([distance(x[torch.randint(n, (n,))], y) for _ in range(DISTANCE_RESAMPLES)])
    low, high = np.quantile(again, [0.025, 0.975]) - again.mean() + value
    return Estimate(value, float(low), float(high), n)
