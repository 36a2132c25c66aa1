"""The fixed geometry of a landmark: convex 3-D faces, assembled from parts by the seed of the class."""

import functools
import itertools
from dataclasses import dataclass

import numpy as np

from landmark.data.randomness import Stream, generator

MATERIALS = np.array(
    [
        (196, 178, 148),
        (214, 206, 190),
        (158, 94, 70),
        (182, 120, 84),
        (150, 150, 152),
        (226, 200, 152),
        (120, 112, 104),
        (200, 160, 130),
    ],
    dtype=float,
)
"""Stone, marble, brick, terracotta, granite, sandstone, basalt, plaster: RGB. All classes share them, so that color is
a weak cue."""
ROOFS = np.array([(126, 62, 50), (84, 92, 104), (92, 128, 112), (196, 162, 72), (150, 140, 126)], dtype=float)
"""Tile, slate, copper, gold, stone."""


@dataclass(frozen=True)
class Structure:
    """Faces of a landmark, about 2 units high and wide, on the plane y = 0, with its front towards +z."""

    corners: np.ndarray
    """float (corners, 3)."""
    faces: list[np.ndarray]
    """Corner indices of each convex face, counter-clockwise from outside."""
    colors: np.ndarray
    """float (faces, 3), RGB 0..255."""
    normals: np.ndarray
    """float (faces, 3), unit length."""
    layers: np.ndarray
    """int (faces,). The face of a window is on its wall and drawn after it."""


class _Builder:
    """Collects faces."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.corners: list[np.ndarray] = []
        self.faces: list[np.ndarray] = []
        self.colors: list[np.ndarray] = []
        self.layers: list[int] = []
        self.count = 0

    def face(self, corners: np.ndarray, color: np.ndarray, layer: int = 0) -> None:
        self.corners.append(corners)
        self.faces.append(np.arange(self.count, self.count + len(corners)))
        self.count += len(corners)
        self.colors.append(color)
        self.layers.append(layer)

    def ring(self, x: float, z: float, y: float, radius: float, sides: int, turn: float) -> np.ndarray:
        angles = turn + 2 * np.pi * np.arange(sides) / sides
        return np.stack([x + radius * np.sin(angles), np.full(sides, y), z + radius * np.cos(angles)], axis=1)

    def band(self, low: np.ndarray, high: np.ndarray, color: np.ndarray) -> None:
        """Add the sides between two rings, float (sides, 3) each."""
        following = np.arange(1, len(low) + 1) % len(low)
        sides = np.stack([low, low[following], high[following], high], axis=1)
        self.corners.append(sides.reshape(-1, 3))
        self.faces += list(np.arange(self.count, self.count + 4 * len(sides)).reshape(-1, 4))
        self.count += 4 * len(sides)
        self.colors += [color] * len(sides)
        self.layers += [0] * len(sides)

    def box(
        self, centre: tuple[float, float, float], size: tuple[float, float, float], color: np.ndarray
    ) -> np.ndarray:
        """Add a box with its base at the center's height. Returns the corners of its front wall."""
        (x, y, z), (w, h, d) = centre, (size[0] / 2, size[1], size[2] / 2)
        low = np.array([(x - w, y, z + d), (x + w, y, z + d), (x + w, y, z - d), (x - w, y, z - d)])
        high = low + np.array([0, h, 0])
        self.band(low, high, color)
        self.face(high, color * 1.05)
        return np.stack([low[0], low[1], high[1], high[0]])

    def wall_grid(self, wall: np.ndarray, columns: int, rows: int, color: np.ndarray, arched: bool) -> None:
        """Add windows to a wall given by its corners: lower left, lower right, upper right, upper left."""
        u, v = wall[1] - wall[0], wall[3] - wall[0]
        for row in range(rows):
            for column in range(columns):
                left, right = (column + 0.28) / columns, (column + 0.72) / columns
                low, high = (row + 0.2) / rows, (row + 0.78) / rows
                points = [(left, low), (right, low), (right, high), (left, high)]
                if arched:
                    middle = (left + right) / 2
                    points = [(left, low), (right, low), (right, high - 0.12 / rows), (middle, high + 0.06 / rows)]
                    points.append((left, high - 0.12 / rows))
                self.face(np.stack([wall[0] + a * u + b * v for a, b in points]), color, layer=1)


@functools.lru_cache(maxsize=4096)
def build_structure(seed: int, number: int) -> Structure:
    """Build the structure of a class. It is the same for the same seed and number on any machine."""
    rng = generator(seed, Stream.SYNTHETIC_LANDMARK, number)
    builder = _Builder(rng)
    wall = MATERIALS[rng.integers(len(MATERIALS))] * rng.uniform(0.88, 1.08) + rng.uniform(-8, 8, 3)
    roof = ROOFS[rng.integers(len(ROOFS))] * rng.uniform(0.9, 1.1)
    dark = np.array([48.0, 46.0, 50.0]) + rng.uniform(-12, 24, 3)
    (_hall, _tower, _temple, _gate, _tiers, _rotunda)[rng.integers(6)](builder, wall, roof, dark)
    _satellites(builder, wall, roof, dark)
    corners = np.concatenate(builder.corners)
    corners /= max(1e-6, np.abs(corners[:, [0, 2]]).max(), corners[:, 1].max() / 2)
    return Structure(
        corners=corners,
        faces=builder.faces,
        colors=np.clip(np.stack(builder.colors), 0, 255),
        normals=_normals(corners, np.array([face[0] for face in builder.faces])),
        layers=np.array(builder.layers),
    )


def _normals(corners: np.ndarray, firsts: np.ndarray) -> np.ndarray:
    """Return each face's normal, float (faces, 3), from its first three corners. firsts: index of its first corner."""
    first, second, third = (corners[firsts + place] for place in range(3))
    normals = np.cross(second - first, third - first)
    return normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)


def _cap(b: _Builder, x: float, z: float, y: float, radius: float, roof: np.ndarray, kind: int, sides: int) -> float:
    """Add a roof to a round or square part: flat, pyramid or spire, dome, onion, battlements. Returns its height."""
    turn = np.pi / sides
    if kind == 0:
        b.face(b.ring(x, z, y, radius, sides, turn), roof)
        return 0.0
    if kind in (1, 2):
        height = radius * (1.1 if kind == 1 else 2.8)
        base, top = b.ring(x, z, y, radius * 1.08, sides, turn), np.array([x, y + height, z])
        for i in range(sides):
            b.face(np.stack([base[i], base[(i + 1) % sides], top]), roof)
        return height
    profile = [(1.0, 0.0), (0.92, 0.4), (0.68, 0.75), (0.3, 0.96), (0.02, 1.05)]
    if kind == 4:
        profile = [(0.8, 0.0), (1.12, 0.35), (1.0, 0.75), (0.5, 1.15), (0.1, 1.5), (0.02, 1.8)]
    for (r0, h0), (r1, h1) in itertools.pairwise(profile):
        low, high = (b.ring(x, z, y + radius * h, radius * r, 10, turn) for r, h in ((r0, h0), (r1, h1)))
        b.band(low, high, roof)
    return radius * profile[-1][1]


def _hall(b: _Builder, wall: np.ndarray, roof: np.ndarray, dark: np.ndarray) -> None:
    """A long building with a gable or a parapet, windows in a grid, sometimes a porch."""
    w, h, d = b.rng.uniform(1.2, 2.0), b.rng.uniform(0.5, 1.1), b.rng.uniform(0.6, 1.0)
    front = b.box((0, 0, 0), (w, h, d), wall)
    b.wall_grid(front, int(b.rng.integers(3, 9)), int(b.rng.integers(1, 4)), dark, bool(b.rng.integers(2)))
    if b.rng.random() < 0.6:
        peak = h + b.rng.uniform(0.25, 0.6)
        ridge = np.array([(-w / 2, peak, 0), (w / 2, peak, 0)])
        eaves = np.array([(-w / 2, h, d / 2), (w / 2, h, d / 2), (w / 2, h, -d / 2), (-w / 2, h, -d / 2)])
        b.face(np.stack([eaves[0], eaves[1], ridge[1], ridge[0]]), roof)
        b.face(np.stack([eaves[2], eaves[3], ridge[0], ridge[1]]), roof)
        b.face(np.stack([eaves[1], eaves[2], ridge[1]]), wall)
        b.face(np.stack([eaves[3], eaves[0], ridge[0]]), wall)
    else:
        _cap(b, 0, 0, h, min(w, d) * b.rng.uniform(0.28, 0.45), roof, int(b.rng.integers(2, 5)), 8)


def _tower(b: _Builder, wall: np.ndarray, roof: np.ndarray, dark: np.ndarray) -> None:
    """A tapering tower of one to four stories, with a cap."""
    sides, y = int(b.rng.choice([4, 4, 6, 8, 12])), 0.0
    radius, storeys = b.rng.uniform(0.28, 0.5), int(b.rng.integers(1, 5))
    taper = b.rng.uniform(0.72, 0.98)
    for storey in range(storeys):
        height = b.rng.uniform(1.6, 2.4) / storeys
        low = b.ring(0, 0, y, radius, sides, np.pi / sides)
        high = b.ring(0, 0, y + height, radius * taper, sides, np.pi / sides)
        b.band(low, high, wall * (1.0 if storey % 2 == 0 else 0.9))
        for i in range(0, sides, max(1, sides // 4)):
            side = np.stack([low[i], low[(i + 1) % sides], high[(i + 1) % sides], high[i]])
            b.wall_grid(side, 1 if sides > 6 else int(b.rng.integers(1, 3)), 1 + storeys % 2, dark, True)
        y, radius = y + height, radius * taper * b.rng.uniform(0.85, 1.0)
    _cap(b, 0, 0, y, radius, roof, int(b.rng.integers(0, 5)), sides)


def _temple(b: _Builder, wall: np.ndarray, roof: np.ndarray, dark: np.ndarray) -> None:
    """Steps, columns in front of a dark cella, an entablature, and a pediment or a dome."""
    w, d, columns = b.rng.uniform(1.4, 2.0), b.rng.uniform(0.8, 1.3), int(b.rng.integers(4, 9))
    height, y = b.rng.uniform(0.6, 1.1), 0.0
    for step in range(int(b.rng.integers(1, 4))):
        b.box((0, y, 0), (w + 0.3 - 0.1 * step, 0.07, d + 0.3 - 0.1 * step), wall * 0.92)
        y += 0.07
    b.box((0, y, 0), (w * 0.8, height, d * 0.7), (wall + dark) / 2)
    for i in range(columns):
        x = -w / 2 + w * (i + 0.5) / columns
        low, high = (b.ring(x, d / 2 - 0.06, level, 0.055, 6, 0.0) for level in (y, y + height))
        b.band(low, high, wall * 1.06)
    b.box((0, y + height, 0), (w, 0.14, d), wall)
    y += height + 0.14
    if b.rng.random() < 0.65:
        peak = y + b.rng.uniform(0.2, 0.45)
        for z in (d / 2, -d / 2):
            front = np.array([(-w / 2, y, z), (w / 2, y, z), (0, peak, z)])
            b.face(front if z > 0 else front[::-1], wall * 0.97)
        for sign in (1, -1):
            slope = np.array([(sign * w / 2, y, d / 2), (sign * w / 2, y, -d / 2), (0, peak, -d / 2), (0, peak, d / 2)])
            b.face(slope if sign > 0 else slope[::-1], roof)
    else:
        _cap(b, 0, 0, y, min(w, d) * 0.38, roof, 3, 10)


def _gate(b: _Builder, wall: np.ndarray, roof: np.ndarray, dark: np.ndarray) -> None:
    """A triumphal arch: one or three dark openings in a block, with an attic and sometimes turrets."""
    w, h, d = b.rng.uniform(1.2, 1.9), b.rng.uniform(1.1, 1.7), b.rng.uniform(0.35, 0.7)
    front = b.box((0, 0, 0), (w, h, d), wall)
    openings = 3 if b.rng.random() < 0.5 else 1
    u, v = front[1] - front[0], front[3] - front[0]
    for i in range(openings):
        centre = (i + 0.5) / openings
        half, top = (0.2 if openings == 1 else 0.1), (0.72 if i == openings // 2 else 0.5)
        outline = [(centre - half, 0.0), (centre + half, 0.0)]
        outline += [(centre + half * np.cos(a), top - 0.12 + 0.12 * np.sin(a)) for a in np.linspace(0, np.pi, 7)]
        b.face(np.stack([front[0] + s * u + t * v for s, t in outline]), dark, layer=1)
    b.box((0, h, 0), (w * 1.04, b.rng.uniform(0.1, 0.3), d * 1.06), wall * 0.93)
    if b.rng.random() < 0.5:
        for x in (-w * 0.42, w * 0.42):
            _cap(b, x, 0, h + 0.25, 0.14, roof, int(b.rng.integers(1, 5)), 8)


def _tiers(b: _Builder, wall: np.ndarray, roof: np.ndarray, dark: np.ndarray) -> None:
    """A stepped pyramid or pagoda: shrinking boxes with eaves or plain terraces."""
    count, w, y = int(b.rng.integers(3, 7)), b.rng.uniform(1.4, 2.0), 0.0
    shrink, eaves = b.rng.uniform(0.66, 0.86), b.rng.random() < 0.5
    for tier in range(count):
        height = b.rng.uniform(1.2, 2.2) / count
        front = b.box((0, y, 0), (w, height, w), wall * (1 - 0.03 * tier))
        if eaves:
            b.box((0, y + height * 0.8, 0), (w * 1.22, height * 0.16, w * 1.22), roof)
        if w > 0.5:
            b.wall_grid(front, max(1, int(5 * w / 2)), 1, dark, bool(tier % 2))
        y, w = y + height, w * shrink
    _cap(b, 0, 0, y, w * 0.4, roof, int(b.rng.integers(0, 5)), 4)


def _rotunda(b: _Builder, wall: np.ndarray, roof: np.ndarray, dark: np.ndarray) -> None:
    """A drum with windows under a large dome, on a plinth."""
    radius, height = b.rng.uniform(0.55, 0.9), b.rng.uniform(0.4, 0.9)
    plinth = b.rng.uniform(0.1, 0.5)
    front = b.box((0, 0, 0), (radius * 2.3, plinth, radius * 2.3), wall * 0.95)
    b.wall_grid(front, int(b.rng.integers(3, 8)), 1, dark, True)
    low, high = (b.ring(0, 0, y, radius, 12, 0.0) for y in (plinth, plinth + height))
    b.band(low, high, wall)
    for i in range(12):
        b.wall_grid(np.stack([low[i], low[(i + 1) % 12], high[(i + 1) % 12], high[i]]), 1, 1, dark, True)
    _cap(b, 0, 0, plinth + height, radius * b.rng.uniform(0.8, 1.0), roof, int(b.rng.choice([1, 3, 3, 4])), 12)


def _satellites(b: _Builder, wall: np.ndarray, roof: np.ndarray, dark: np.ndarray) -> None:
    """Minarets or turrets at the corners or next to the front: none, two or four identical ones."""
    count = int(b.rng.choice([0, 0, 2, 4]))
    if not count:
        return
    span, depth = b.rng.uniform(0.8, 1.3), b.rng.uniform(0.3, 0.9)
    radius, height, kind = b.rng.uniform(0.06, 0.16), b.rng.uniform(0.8, 2.2), int(b.rng.integers(0, 5))
    for x, z in ((-span, depth), (span, depth), (-span, -depth), (span, -depth))[:count]:
        low, high = (b.ring(x, z, y, r, 8, 0.0) for y, r in ((0.0, radius), (height, radius * 0.85)))
        b.band(low, high, wall * 1.03)
        for level in (0.55, 0.8):
            low, high = (b.ring(x, z, height * (level + up), radius * 1.3, 8, 0.0) for up in (0.0, 0.035))
            b.band(low, high, dark * 1.6)
        _cap(b, x, z, height, radius * 1.15, roof, kind, 8)
