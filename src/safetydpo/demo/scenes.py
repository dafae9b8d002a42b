"""Procedural 48 x 48 scenes: one coloured shape on a field, and on the other half nothing or one mark.

Everything is drawn from signed distance functions on the pixel grid, so a scene costs ~0.2 ms and edges are smooth.
"""

import itertools
from dataclasses import dataclass

import numpy as np

SIZE = 48
COLOURS = {
    "red": (220, 35, 35),
    "orange": (250, 140, 25),
    "yellow": (245, 215, 45),
    "green": (35, 165, 60),
    "blue": (50, 85, 230),
    "purple": (145, 50, 180),
    "white": (245, 245, 245),
}
FIELDS = {
    "navy": (32, 40, 115),
    "brown": (110, 66, 34),
    "pink": (248, 175, 200),
    "lime": (165, 225, 120),
    "teal": (20, 115, 118),
    "grey": (130, 130, 132),
}
INKS = {
    "white": (250, 250, 250),
    "magenta": (240, 15, 160),
    "cyan": (20, 235, 245),
    "amber": (255, 150, 0),
}
SIDES = ("left", "right")
SHAPES = ("circle", "square", "triangle", "diamond", "star")
FAMILIES = ("stripes", "checker", "cross", "zigzag", "ring", "arrow", "grid")
BENIGN = {"leaf": (60, 190, 50), "cloud": (232, 238, 248), "moon": (250, 225, 110)}
MARKS = (*BENIGN, *FAMILIES)


@dataclass(frozen=True)
class Scene:
    """What a picture shows. `mark` is a family (then with an `ink`), a benign mark, or None."""

    colour: str
    shape: str
    field: str
    mark: str | None = None
    ink: str | None = None


def _polygon(x: np.ndarray, y: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Signed distance to a closed polygon (points (n, 2)); negative inside."""
    nearest = np.full(x.shape, np.inf)
    inside = np.ones(x.shape)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, 1, axis=0), strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (wx - ex * t) ** 2 + (wy - ey * t) ** 2)
        above, below, left = y >= ay, y < by, ex * wy > ey * wx
        inside = np.where((above & below & left) | (~above & ~below & ~left), -inside, inside)
    return inside * np.sqrt(nearest)


def _strokes(x: np.ndarray, y: np.ndarray, lines: list[list[tuple[float, float]]], width: float) -> np.ndarray:
    """Distance to polylines drawn with round pens of the given width."""
    nearest = np.full(x.shape, np.inf)
    for line in lines:
        for (ax, ay), (bx, by) in itertools.pairwise(line):
            ex, ey = bx - ax, by - ay
            t = np.clip(((x - ax) * ex + (y - ay) * ey) / (ex * ex + ey * ey), 0, 1)
            nearest = np.minimum(nearest, np.hypot(x - ax - ex * t, y - ay - ey * t))
    return nearest - width / 2


def _regular(n: int, radius: float, inner: float | None = None) -> np.ndarray:
    """Vertices of a regular polygon (or star, with `inner` radius), first vertex up."""
    count = n if inner is None else 2 * n
    angle = 2 * np.pi * np.arange(count) / count - np.pi / 2
    radii = np.full(count, radius) if inner is None else np.where(np.arange(count) % 2, inner, radius)
    return np.stack([radii * np.cos(angle), radii * np.sin(angle)], axis=1)


def _shape(name: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    match name:
        case "circle":
            return np.hypot(x, y) - radius
        case "square":
            return np.maximum(abs(x), abs(y)) - 0.88 * radius
        case "triangle":
            return _polygon(x, y + 0.2 * radius, radius * np.array([(0, -0.9), (1.05, 0.9), (-1.05, 0.9)]))
        case "diamond":
            return _polygon(x, y, radius * np.array([(0, -1.2), (0.85, 0), (0, 1.2), (-0.85, 0)]))
        case _:
            return _polygon(x, y, _regular(5, 1.2 * radius, 0.5 * radius))


def _mark(name: str, x: np.ndarray, y: np.ndarray, r: float) -> np.ndarray:
    """Distance to a mark of half-width r (about 10 pixels), strokes never thinner than 3.5 pixels."""
    match name:
        case "stripes":
            return _strokes(x, y, [[(s - 3.5, r - 2), (s + 3.5, 2 - r)] for s in (-6.4, 0, 6.4)], 3.8)
        case "checker":
            cell = r * 2 / 3
            corners = [(a, b) for a in (-cell, 0, cell) for b in (-cell, 0, cell) if (a == 0) == (b == 0)]
            return np.minimum.reduce([np.maximum(abs(x - a), abs(y - b)) - cell / 2 for a, b in corners])
        case "cross":
            return _strokes(x, y, [[(-r + 2, -r + 2), (r - 2, r - 2)], [(-r + 2, r - 2), (r - 2, -r + 2)]], 5.2)
        case "zigzag":
            return _strokes(x, y, [[(-r + 1, 5), (-r / 2, -5), (0, 5), (r / 2, -5), (r - 1, 5)]], 4.2)
        case "ring":
            return abs(np.hypot(x, y) - 0.72 * r) - 2.5
        case "arrow":
            head = _polygon(x, y, np.array([(0, -r), (0.85 * r, -0.05 * r), (-0.85 * r, -0.05 * r)]))
            return np.minimum(head, np.maximum(abs(x) - 2.6, abs(y - 0.4 * r) - 0.55 * r))
        case "grid":
            bars = [[(s, -r + 2), (s, r - 2)] for s in (-4.2, 4.2)] + [[(-r + 2, s), (r - 2, s)] for s in (-4.2, 4.2)]
            return _strokes(x, y, bars, 3.6)
        case "leaf":
            u, v = (x + y) * 0.7071, (y - x) * 0.7071
            return np.maximum(np.hypot(u, v - 5.5), np.hypot(u, v + 5.5)) - 9.5
        case "cloud":
            puffs = [(-5, 2, 4.2), (0, -1.5, 5.2), (5, 2, 4.2)]
            return np.minimum.reduce([np.hypot(x - a, y - b) - c for a, b, c in puffs])
        case _:  # moon
            return np.maximum(np.hypot(x, y) - 7.5, 6.3 - np.hypot(x - 4.2, y + 1.5))


def _paint(image: np.ndarray, distance: np.ndarray, colour: np.ndarray, opacity: float = 1.0) -> np.ndarray:
    alpha = opacity * np.clip(0.5 - distance, 0, 1)[..., None]
    return image * (1 - alpha) + colour * alpha


def draw(
    scene: Scene,
    rng: np.random.Generator,
    *,
    side: str | None = None,
    opacity: float = 1.0,
    garbage: bool = False,
) -> np.ndarray:
    """Ground truth of a scene, uint8 (48, 48, 3); position, size, tint and the shape's side come from `rng`.

    `side` fixes the shape's side. `opacity` fades the mark: half-removed marks are still marks, and judges learn those.
    `garbage` draws random blobs instead of a mark: the failure picture that judges must not call clean.
    """
    ys, xs = np.mgrid[0:SIZE, 0:SIZE] + 0.5

    def tint(rgb: tuple[int, int, int]) -> np.ndarray:
        return np.asarray(rgb, float) + rng.normal(0, 4, 3)

    left = rng.random() < 0.5 if side is None else side == "left"
    near, far = (12.0, 36.0) if left else (36.0, 12.0)
    image = np.ones((SIZE, SIZE, 3)) * tint(FIELDS[scene.field])
    cx, cy, radius = near + rng.uniform(-1.5, 1.5), rng.uniform(13, 35), rng.uniform(7.8, 9.2)
    image = _paint(image, _shape(scene.shape, xs - cx, ys - cy, radius), tint(COLOURS[scene.colour]))
    mx, my, half = far + rng.uniform(-1, 1), rng.uniform(13, 35), rng.uniform(9.3, 10.5)
    if garbage:
        ink = tint(list(INKS.values())[rng.integers(len(INKS))])
        for _ in range(rng.integers(3, 9)):
            bx, by = rng.normal(0, 5, 2)
            image = _paint(image, np.hypot(xs - mx - bx, ys - my - by) - rng.uniform(1, 4), ink + rng.normal(0, 25, 3))
    elif scene.mark is not None:
        ink = BENIGN[scene.mark] if scene.mark in BENIGN else INKS[scene.ink or "white"]
        image = _paint(image, _mark(scene.mark, xs - mx, ys - my, half), tint(ink), opacity)
    return np.clip(image + rng.normal(0, 1.0, image.shape), 0, 255).astype(np.uint8)
