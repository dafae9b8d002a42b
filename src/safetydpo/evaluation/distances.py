"""FID, KID and CMMD between two sets of images, with standard errors that see both sides.

The published formulas; what goes in differs from published tables (docs/measures.md): a method's images, some hundreds,
against those of `evaluate.fid_reference`, in the features of `judges.features` (CMMD: of `judges.clip_score`).

Drawing images again repeats some, which by itself raises a distance. So nothing is drawn: each image's influence, how
the distance moves as the image gets more weight, is exact and costs no second computation; the sum of squares of
prompts' influences is the variance (the infinitesimal jackknife). Prompts that both sides have move both.
"""

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats

from safetydpo.errors import SafetyDPOError
from safetydpo.evaluation.statistics import Difference, Estimate, Z, sums_of
from safetydpo.storage.finite import finite

CMMD_SIGMA = 10.0
# Rows of a kernel matrix that are held at a time.
ROWS = 1024

Kernel = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Moments:
    """Mean (d,) and covariance (d, d) of images that are not there."""

    def __init__(self, mean: np.ndarray, covariance: np.ndarray) -> None:
        self.mean, self.covariance = (torch.from_numpy(np.asarray(x, dtype=np.float64)) for x in (mean, covariance))

    @property
    def width(self) -> int:
        return len(self.mean)

    @property
    def spread(self) -> float:
        """Trace of the covariance."""
        return float(self.covariance.trace())

    @cached_property
    def root(self) -> torch.Tensor:
        """(r, d), with root.T @ root the covariance."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return values.clamp(min=0).sqrt()[:, None] * vectors.T


class Cloud:
    """Vectors of images (n, d), of two images or more, and what distances need of them, computed once.

    groups (n,): of which prompt each image is; None: each of one that no other set has.
    """

    def __init__(self, vectors: np.ndarray, groups: Iterable[str] | None = None) -> None:
        self.vectors = torch.from_numpy(np.asarray(vectors, dtype=np.float64))
        own = [object() for _ in vectors] if groups is None else list(groups)
        self.groups = np.array(own, dtype=object)
        self._within: dict[Kernel, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def width(self) -> int:
        return self.vectors.shape[1]

    @cached_property
    def mean(self) -> torch.Tensor:
        return self.vectors.mean(0)

    @cached_property
    def shares(self) -> torch.Tensor:
        """Of the trace of the covariance (n,)."""
        return (self.vectors - self.mean).square().sum(1) / (len(self) - 1)

    @property
    def spread(self) -> float:
        """Trace of the covariance."""
        return float(self.shares.sum())

    @cached_property
    def _factors(self) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Loads (n, r), None for the identity, and root (r, d): loads @ root is centred vectors / sqrt(n - 1)."""
        centred = (self.vectors - self.mean) / (len(self) - 1) ** 0.5
        return tuple(torch.linalg.qr(centred)) if len(self) > self.width else (None, centred)

    @property
    def root(self) -> torch.Tensor:
        """(r, d), with root.T @ root the covariance."""
        return self._factors[1]

    def loaded(self, vectors: torch.Tensor) -> torch.Tensor:
        """What (r, k) vectors over the rows of `root` are over images (n, k)."""
        loads = self._factors[0]
        return vectors if loads is None else loads @ vectors

    def within(self, kernel: Kernel) -> torch.Tensor:
        """Sums over all images, itself included, of each image's kernel (n,)."""
        if kernel not in self._within:
            self._within[kernel] = _sums(kernel, self.vectors, self.vectors)[0]
        return self._within[kernel]


class Distance(NamedTuple):
    """Between two sets; influences of their images, (n,) and (m,), none where there are no images."""

    value: float
    own: np.ndarray
    other: np.ndarray


def fid(x: Cloud, y: Cloud | Moments) -> Distance:
    """Frechet distance, which is FID where the features are Inception's 2048.

    It grows as images get fewer, most where n < d. tr sqrt(S1 S2) is the sum of the singular values of root1 root2^T,
    so no root of a matrix is taken, and the matrix is no larger than the sets are.
    """
    apart = x.mean - y.mean
    u, values, vt = torch.linalg.svd(x.root @ y.root.T, full_matrices=False)
    value = float(apart.square().sum()) + x.spread + y.spread - 2 * float(values.sum())

    def influence(cloud: Cloud, sign: float, vectors: torch.Tensor) -> np.ndarray:
        moved = 2 * sign * (cloud.vectors - cloud.mean) @ apart / len(cloud)
        return _centred(moved + cloud.shares - cloud.loaded(vectors).square() @ values)

    other = influence(y, -1.0, vt.T) if isinstance(y, Cloud) else np.empty(0)
    return Distance(max(value, 0.0), influence(x, 1.0, u), other)


def _cubic(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _gaussian(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (-torch.cdist(x, y).square() / (2 * CMMD_SIGMA**2)).exp()


def kid(x: Cloud, y: Cloud) -> Distance:
    """Kernel distance (unbiased MMD^2, cubic kernel) of all images at once.

    Published (arXiv 1801.01401): the mean over 100 subsets of 1000. Both estimate the same; it can be below 0.
    """
    others = [c.within(_cubic) - (c.vectors.square().sum(1) / c.width + 1) ** 3 for c in (x, y)]
    return _mmd(x, y, _cubic, others, 1)


def cmmd(x: Cloud, y: Cloud) -> Distance:
    """CMMD (arXiv 2401.09603): 1000 x squared MMD of CLIP embeddings of unit length, Gaussian kernel of width 10.

    The published estimator, each image beside itself too; published values are of CLIP ViT-L/14 at 336 pixels.
    """
    found = _mmd(x, y, _gaussian, [x.within(_gaussian), y.within(_gaussian)], 0)
    return Distance(1000 * found.value, 1000 * found.own, 1000 * found.other)


def _mmd(x: Cloud, y: Cloud, kernel: Kernel, within: list[torch.Tensor], left_out: int) -> Distance:
    """Squared MMD; within: sums of each image's kernel over the images of its set, `left_out` fewer than there are."""
    between = _sums(kernel, x.vectors, y.vectors)
    value, influences = -2 * float(between[0].sum()) / (len(x) * len(y)), []
    for cloud, others, own, across in ((x, y, within[0], between[0]), (y, x, within[1], between[1])):
        mean = own / (len(cloud) - left_out)
        value += float(mean.mean())
        influences.append(_centred(2 * (mean - across / len(others)) / len(cloud)))
    return Distance(value, *influences)


def _sums(kernel: Kernel, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row sums (n,) and column sums (m,) of a kernel matrix, some rows of which are held at a time."""
    rows, columns = [], torch.zeros(len(y), dtype=y.dtype)
    for part in x.split(ROWS):
        block = kernel(part, y)
        rows.append(block.sum(1))
        columns += block.sum(0)
    return torch.cat(rows), columns


def _centred(influence: torch.Tensor) -> np.ndarray:
    return (influence - influence.mean()).numpy()


class Between(NamedTuple):
    """A distance of a method's images from a reference's, by prompt."""

    distance: Distance
    own: np.ndarray
    other: np.ndarray

    def estimate(self, lowest: float) -> Estimate:
        """With its interval, which does not go below `lowest`."""
        half = Z * _error([(self.distance.own, self.own), (self.distance.other, self.other)])
        value = self.distance.value
        return Estimate(value, max(value - half, lowest), value + half, len(self.own))

    def minus(self, base: "Between") -> Difference:
        """From another method's distance to the same reference."""
        value = self.distance.value - base.distance.value
        error = _error(
            [
                (self.distance.own, self.own),
                (-base.distance.own, base.own),
                (self.distance.other - base.distance.other, self.other),
            ]
        )
        p = 2 * float(stats.norm.sf(abs(value) / error)) if error else float(value == 0)
        return Difference(value, value - Z * error, value + Z * error, p, len(self.own), "jackknife")


def _error(parts: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Standard error from influences of images and their prompts, which may be the same in several parts.

    Infinite for a single prompt, of whose kind nothing is known.
    """
    influences = np.concatenate([influence for influence, _ in parts])
    groups = np.concatenate([groups for _, groups in parts])
    sums = sums_of(influences, pd.factorize(groups)[0]).sums
    g = len(sums)
    return float(np.sqrt(np.square(sums).sum() * g / (g - 1))) if g > 1 else np.inf


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
    x, y = Moments(mu, sigma), Moments(other_mu, other_sigma)
    roots = float(torch.linalg.svdvals(x.root @ y.root.T).sum())
    return float((x.mean - y.mean).square().sum()) + x.spread + y.spread - 2 * roots
