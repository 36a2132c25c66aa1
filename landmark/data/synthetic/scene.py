"""Rendering of a landmark's view: camera, light, sky, ground, clutter and occlusion, then camera artifacts."""

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import simplejpeg

from landmark.config import SyntheticConfig
from landmark.data.randomness import Stream, generator
from landmark.data.synthetic.structure import Structure, build_structure

SUPERSAMPLING = 2
QUALITY = 90
CLUTTER_POOL = 40
"""Number of other structures for the background. All landmarks share them."""
CLUTTER_NUMBERS = 1 << 40
"""First structure number of the clutter, above all class numbers."""
FIXED_POINT_BITS = 4


def render_image(row: Mapping[str, Any], config: SyntheticConfig, seed: int) -> bytes:
    """Render the image of a row of `plan_images` as JPEG bytes, or as bytes that cannot be decoded for a broken one.

    A function of only (row, config, seed): the same bytes on any machine.
    """
    rng = np.random.default_rng([seed & 0xFFFFFFFF, int(row["view_seed"])])
    pixels = _photograph(row, config.image_size, seed, rng)
    if row["duplicate_of"] is not None:
        return _changed_copy(pixels, generator(seed, Stream.SYNTHETIC_DUPLICATE, int(row["image_id"][:12], 16)))
    data = simplejpeg.encode_jpeg(pixels, quality=QUALITY, colorspace="RGB", colorsubsampling="420")
    return _break(data, rng) if row["kind"] == "broken" else data


def _photograph(row: Mapping[str, Any], size: int, seed: int, rng: np.random.Generator) -> np.ndarray:
    """Render one view with camera effects: uint8 (size, size, 3)."""
    side = size * SUPERSAMPLING
    camera = _Camera(rng, side)
    tint, ambient, sun = _light(rng)
    canvas = _backdrop(rng, camera, side, tint)
    for _ in range(rng.integers(1, 4)):
        _draw_clutter(canvas, rng, camera, seed, ambient, sun, tint)
    if row["kind"] != "nothing":
        structure = build_structure(seed, int(row["true_landmark_id"].rsplit("-", 1)[1]))
        _draw_structure(canvas, structure, camera, np.zeros(3), 1.0, ambient, sun, tint)
    for _ in range(rng.integers(0, 4) if row["kind"] != "nothing" else rng.integers(3, 7)):
        _OCCLUDERS[rng.integers(len(_OCCLUDERS))](canvas, rng, side, camera.horizon, tint)
    return _develop(cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA), rng)


class _Camera:
    """A pinhole camera that looks at the landmark from a random position in front of it."""

    def __init__(self, rng: np.random.Generator, side: int) -> None:
        yaw = rng.normal(0, 0.45)
        lift = rng.uniform(0.02, 0.35)
        roll = rng.normal(0, 0.03)
        self.distance = rng.uniform(3.6, 6.5)
        self.focal = side * rng.uniform(0.95, 1.5)
        cos_y, sin_y = np.cos(yaw), np.sin(yaw)
        cos_l, sin_l = np.cos(lift), np.sin(lift)
        turn = np.array([(cos_y, 0, sin_y), (0, 1, 0), (-sin_y, 0, cos_y)])
        nod = np.array([(1, 0, 0), (0, cos_l, -sin_l), (0, sin_l, cos_l)])
        lean = np.array([(np.cos(roll), -np.sin(roll), 0), (np.sin(roll), np.cos(roll), 0), (0, 0, 1)])
        self.rotation = lean @ nod @ turn
        self.aim = np.array([rng.normal(0, 0.34), 0.85 + rng.normal(0, 0.17), 0.0])
        self.centre = side / 2
        self.horizon = float(self.centre - self.focal * np.tan(lift))

    def project(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return pixel positions (n, 2) and depths (n,) of 3-D points (n, 3)."""
        seen = (points - self.aim) @ self.rotation.T
        depth = np.maximum(self.distance - seen[:, 2], 0.2)
        scale = self.focal / depth
        return np.stack([self.centre + seen[:, 0] * scale, self.centre - seen[:, 1] * scale], axis=1), depth

    def facing(self, normals: np.ndarray, middles: np.ndarray) -> np.ndarray:
        """Return a mask of the faces that face the camera."""
        eye = self.aim + self.rotation.T @ np.array([0, 0, self.distance])
        return np.einsum("ij,ij->i", normals, eye - middles) > 0


def _light(rng: np.random.Generator) -> tuple[np.ndarray, float, np.ndarray]:
    """Return the light's color (3,), the ambient fraction and the sun's direction (3,) scaled by its strength."""
    kind = rng.integers(4)
    tint = np.array([(1.0, 1.0, 0.98), (1.12, 0.95, 0.78), (0.85, 0.92, 1.06), (0.78, 0.76, 0.9)][kind])
    ambient = (0.55, 0.5, 0.85, 0.55)[kind] * rng.uniform(0.9, 1.1)
    azimuth, height = rng.uniform(-1.9, 1.9), rng.uniform(0.15, 1.1)
    sun = np.array([np.sin(azimuth) * np.cos(height), np.sin(height), np.cos(azimuth) * np.cos(height)])
    return tint * rng.uniform(0.92, 1.06, 3), ambient, sun * (1.05 - ambient)


def _backdrop(rng: np.random.Generator, camera: _Camera, side: int, tint: np.ndarray) -> np.ndarray:
    """Paint sky, clouds, hills and ground."""
    skies = [((96, 150, 214), (196, 218, 238)), ((170, 178, 186), (206, 208, 210)), ((88, 84, 138), (240, 168, 110))]
    skies += [((120, 170, 220), (230, 226, 214)), ((60, 74, 110), (140, 140, 160))]
    top, bottom = (np.array(color) * rng.uniform(0.88, 1.08) for color in skies[rng.integers(len(skies))])
    horizon = int(np.clip(camera.horizon, 0.15 * side, 0.85 * side))
    ramp = np.linspace(0, 1, max(horizon, 1))[:, None] ** rng.uniform(0.6, 1.4)
    canvas = np.empty((side, side, 3), np.uint8)
    canvas[:horizon] = (top * (1 - ramp) + bottom * ramp)[:, None, :].clip(0, 255)
    for _ in range(rng.integers(0, 7)):
        centre = (int(rng.integers(side)), int(rng.integers(max(1, horizon))))
        axes = (int(side * rng.uniform(0.05, 0.22)), int(side * rng.uniform(0.01, 0.05)))
        cv2.ellipse(canvas, centre, axes, 0, 0, 360, _color_cast(bottom * 0.5 + 120), -1)
    if rng.random() < 0.5:
        xs = np.linspace(0, side, 9)
        heights = horizon - side * rng.uniform(0.02, 0.14) * (0.4 + rng.random(9))
        hills = np.concatenate([np.stack([xs, heights], 1), [(side, horizon), (0, horizon)]])
        cv2.fillPoly(
            canvas, [hills.astype(np.int32)], _color_cast((np.array([96, 118, 100]) + rng.normal(0, 14, 3)) * tint)
        )
    grounds = np.array([(112, 138, 78), (168, 160, 148), (196, 172, 128), (120, 122, 124), (96, 124, 146)])
    near = grounds[rng.integers(len(grounds))] * tint * rng.uniform(0.85, 1.1)
    ramp = np.linspace(0.85, 1.1, side - horizon)[:, None]
    canvas[horizon:] = (near * ramp)[:, None, :].clip(0, 255)
    return canvas


def _draw_structure(
    canvas: np.ndarray,
    structure: Structure,
    camera: _Camera,
    offset: np.ndarray,
    scale: float,
    ambient: float,
    sun: np.ndarray,
    tint: np.ndarray,
) -> None:
    """Paint a structure's visible faces from far to near."""
    corners = structure.corners * scale + offset
    spots, depths = camera.project(corners)
    starts = np.array([face[0] for face in structure.faces])
    counts = np.array([len(face) for face in structure.faces])
    middles = np.add.reduceat(corners, starts) / counts[:, None]
    distance = np.add.reduceat(depths, starts) / counts
    visible = np.flatnonzero(camera.facing(structure.normals, middles))
    shade = ambient + np.maximum(structure.normals[visible] @ sun, 0)
    colors = np.clip(structure.colors[visible] * shade[:, None] * tint, 0, 255)
    # A window has the same depth as its wall. A small offset decides the order.
    order = np.argsort(-(distance[visible] - 0.12 * scale * structure.layers[visible]), kind="stable")
    fixed = np.round(spots * (1 << FIXED_POINT_BITS)).astype(np.int32)
    for i in order:
        face = fixed[structure.faces[visible[i]]]
        cv2.fillConvexPoly(canvas, face, colors[i].tolist(), lineType=cv2.LINE_8, shift=FIXED_POINT_BITS)


def _draw_clutter(
    canvas: np.ndarray,
    rng: np.random.Generator,
    camera: _Camera,
    seed: int,
    ambient: float,
    sun: np.ndarray,
    tint: np.ndarray,
) -> None:
    """Paint another building, farther away and to one side. It belongs to no class."""
    structure = build_structure(seed, CLUTTER_NUMBERS + int(rng.integers(CLUTTER_POOL)))
    offset = np.array([rng.choice([-1, 1]) * rng.uniform(1.5, 4.0), 0.0, -rng.uniform(1.5, 6.0)])
    haze = tint * rng.uniform(0.85, 1.0)
    _draw_structure(canvas, structure, camera, offset, rng.uniform(0.5, 1.1), ambient, sun, haze)


def _tree(canvas: np.ndarray, rng: np.random.Generator, side: int, horizon: float, tint: np.ndarray) -> None:
    x, y = rng.integers(side), int(min(side, horizon + side * rng.uniform(0.12, 0.6)))
    height = side * rng.uniform(0.15, 0.5)
    cv2.line(canvas, (int(x), y), (int(x), int(y - height * 0.6)), (70, 54, 40), max(1, int(height * 0.06)))
    leaf = np.array([62, 96, 48]) * tint * rng.uniform(0.7, 1.3)
    for _ in range(5):
        spot = (int(x + rng.normal(0, height * 0.13)), int(y - height * rng.uniform(0.55, 0.95)))
        cv2.circle(
            canvas, spot, max(2, int(height * rng.uniform(0.1, 0.2))), _color_cast(leaf * rng.uniform(0.85, 1.15)), -1
        )


def _person(canvas: np.ndarray, rng: np.random.Generator, side: int, horizon: float, tint: np.ndarray) -> None:
    x, height = int(rng.integers(side)), side * rng.uniform(0.06, 0.3)
    foot = int(min(side * 1.05, horizon + height * rng.uniform(0.9, 1.6)))
    half = max(1, int(height * 0.13))
    cloth = _color_cast(rng.uniform(20, 220, 3) * tint)
    cv2.rectangle(canvas, (x - half, int(foot - height * 0.8)), (x + half, foot), cloth, -1)
    cv2.circle(
        canvas,
        (x, int(foot - height * 0.9)),
        max(1, int(height * 0.1)),
        _color_cast(np.array([190, 140, 110]) * tint),
        -1,
    )


def _lamp(canvas: np.ndarray, rng: np.random.Generator, side: int, horizon: float, tint: np.ndarray) -> None:
    x, top = int(rng.integers(side)), int(side * rng.uniform(0.05, 0.5))
    foot, width = int(min(side, horizon + side * rng.uniform(0.15, 0.5))), max(1, int(side * rng.uniform(0.006, 0.016)))
    cv2.line(canvas, (x, foot), (x, top), (52, 54, 58), width)
    cv2.circle(canvas, (x, top), width * 2, _color_cast(np.array([220, 216, 190]) * tint), -1)


def _vehicle(canvas: np.ndarray, rng: np.random.Generator, side: int, horizon: float, tint: np.ndarray) -> None:
    x, width = int(rng.integers(side)), side * rng.uniform(0.14, 0.4)
    foot = int(min(side, horizon + side * rng.uniform(0.12, 0.5)))
    paint = _color_cast(rng.uniform(30, 220, 3) * tint)
    half, height = int(width / 2), int(width * 0.26)
    cv2.rectangle(canvas, (x - half, foot - height), (x + half, foot - height // 4), paint, -1)
    cv2.rectangle(canvas, (x - half // 2, foot - 2 * height + height // 4), (x + half // 2, foot - height), paint, -1)
    for wheel in (x - half // 2, x + half // 2):
        cv2.circle(canvas, (wheel, foot - height // 4), max(1, height // 3), (30, 30, 32), -1)


_OCCLUDERS = (_tree, _person, _lamp, _vehicle)


def _develop(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Apply a camera's exposure, contrast, color cast, blur and noise: uint8 of the same shape."""
    gain = rng.uniform(0.75, 1.2) * rng.uniform(0.95, 1.05, 3)
    contrast, lift = rng.uniform(0.8, 1.15), rng.uniform(-12, 14)
    levels = np.arange(256)[:, None] * gain * contrast + 128 * (1 - contrast) + lift
    picture = cv2.LUT(pixels, np.clip(levels, 0, 255).astype(np.uint8)[:, None, :])
    if rng.random() < 0.3:
        picture = cv2.GaussianBlur(picture, (3, 3), rng.uniform(0.4, 1.2))
    noise = rng.integers(-128, 128, picture.shape, dtype=np.int8).astype(np.int16)
    return np.clip(picture + (noise * int(rng.integers(6, 40)) >> 8), 0, 255).astype(np.uint8)


def _changed_copy(pixels: np.ndarray, rng: np.random.Generator) -> bytes:
    """Encode a near-duplicate: cropped, resized, with other brightness, at a lower quality."""
    size = len(pixels)
    margin = [int(size * fraction) for fraction in rng.uniform(0.0, 0.06, 4)]
    crop = pixels[margin[0] : size - margin[1], margin[2] : size - margin[3]]
    copy = cv2.resize(crop, (size, size), interpolation=cv2.INTER_LINEAR)
    copy = cv2.convertScaleAbs(copy, alpha=rng.uniform(0.92, 1.08), beta=rng.uniform(-6, 6))
    return simplejpeg.encode_jpeg(copy, quality=int(rng.integers(55, 85)), colorspace="RGB", colorsubsampling="420")


def _break(data: bytes, rng: np.random.Generator) -> bytes:
    """Corrupt a file so that it cannot be decoded: truncated, emptied or overwritten."""
    kind = rng.integers(4)
    if kind == 0:
        return data[: int(len(data) * rng.uniform(0.1, 0.7))]
    if kind == 1:
        return b""
    if kind == 2:
        return data[: int(rng.integers(4, 200))]
    return rng.bytes(len(data))


def _color_cast(values: np.ndarray) -> tuple[float, float, float]:
    red, green, blue = np.clip(values, 0, 255).tolist()
    return red, green, blue
