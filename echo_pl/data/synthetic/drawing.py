"""Draws a schematic frontal chest X-ray from latent findings, in numpy.

Coordinates are fractions of the image, x to the right and y down; as in a radiograph, the patient's right is on the
left of the image. Every finding is drawn so that a very small model can recognize it in the 64x64 image, sizes
included.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float32]

DRAWING_VERSION = 2
"""Part of the corpus fingerprint: raise it whenever a picture changes."""

HEART_WIDTHS = {"": 0.115, "mild": 0.155, "moderate": 0.195, "severe": 0.235}
EFFUSION_HEIGHTS = {"small": 0.08, "moderate": 0.19, "large": 0.32}
LOBE_CENTRES = {
    "right_upper": (0.29, 0.31),
    "right_middle": (0.27, 0.50),
    "right_lower": (0.30, 0.68),
    "left_upper": (0.71, 0.31),
    "left_lower": (0.73, 0.66),
}
LUNG_BASE = 0.80


@lru_cache(maxsize=4)
def _grid(size: int) -> tuple[Plane, Plane]:
    centres = (np.arange(size) + 0.5) / size
    x, y = np.meshgrid(centres, centres)
    return x.astype(np.float32), y.astype(np.float32)


class ChestCanvas:
    """One image being drawn.

    Args:
        size: Width and height in pixels.
        rng: Source of the anatomy's jitter and of the noise.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        x, y = _grid(size)
        dx, dy, zoom = rng.uniform(-0.02, 0.02), rng.uniform(-0.02, 0.02), rng.uniform(0.97, 1.03)
        self._rng = rng
        self.soft = 0.6 / size
        self.x: Plane = (x - 0.5 - np.float32(dx)) / np.float32(zoom) + np.float32(0.5)
        self.y: Plane = (y - 0.5 - np.float32(dy)) / np.float32(zoom) + np.float32(0.5)
        self.image: Plane = np.full((size, size), 0.05, dtype=np.float32)

    def ellipse(self, cx: float, cy: float, rx: float, ry: float) -> Plane:
        """Soft-edged mask in [0, 1] of an ellipse."""
        radius = np.sqrt(((self.x - cx) / rx) ** 2 + ((self.y - cy) / ry) ** 2)
        return np.clip((1 - radius) * min(rx, ry) / self.soft + 0.5, 0, 1)

    def box(self, x0: float, y0: float, x1: float, y1: float) -> Plane:
        """Soft-edged mask in [0, 1] of an upright rectangle."""
        inside = np.minimum(
            np.minimum(self.x - x0, x1 - self.x),
            np.minimum(self.y - y0, y1 - self.y),
        )
        return np.clip(inside / self.soft + 0.5, 0, 1)

    def line(self, x0: float, y0: float, x1: float, y1: float, width: float) -> Plane:
        """Soft-edged mask in [0, 1] of a straight line."""
        dx, dy = x1 - x0, y1 - y0
        along = np.clip(((self.x - x0) * dx + (self.y - y0) * dy) / (dx * dx + dy * dy), 0, 1)
        distance = np.sqrt((self.x - x0 - along * dx) ** 2 + (self.y - y0 - along * dy) ** 2)
        return np.clip((width / 2 - distance) / self.soft + 0.5, 0, 1)

    def paint(self, mask: Plane, value: float) -> None:
        """Cover the masked part with a grey value."""
        self.image += mask * (np.float32(value) - self.image)

    def add(self, mask: Plane, value: float) -> None:
        """Lighten the masked part."""
        self.image += mask * np.float32(value)

    def jitter(self, scale: float) -> float:
        """A small random displacement."""
        return float(self._rng.uniform(-scale, scale))

    def finish(self) -> NDArray[np.uint8]:
        """Vary brightness and contrast, add noise, and return grey values of shape (size, size)."""
        contrast, brightness = self._rng.uniform(0.85, 1.1), self._rng.uniform(-0.04, 0.04)
        noise = self._rng.standard_normal(self.image.shape, dtype=np.float32) * np.float32(0.025)
        shown = (self.image - 0.4) * np.float32(contrast) + np.float32(0.4 + brightness) + noise
        return (np.clip(shown, 0, 1) * 255).astype(np.uint8)


def draw_chest(findings: Mapping[str, str], size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw one image.

    Args:
        findings: Finding name to size ("" where it has none), as named in the table of findings.
        size: Width and height in pixels.
        rng: Source of everything random in the picture.

    Returns:
        Grey values, (size, size).
    """
    canvas = ChestCanvas(size, rng)
    _draw_anatomy(canvas, "hilar_enlargement" in findings)
    for sign, side in ((-1.0, "right"), (1.0, "left")):
        if f"effusion_{side}" in findings:
            _draw_effusion(canvas, sign, findings[f"effusion_{side}"])
    _draw_heart(canvas, findings.get("cardiomegaly", ""))
    for sign, side in ((-1.0, "right"), (1.0, "left")):
        if f"pneumothorax_{side}" in findings:
            _draw_pneumothorax(canvas, sign)
        if f"nodule_{side}" in findings:
            _draw_nodule(canvas, sign)
        if f"rib_fracture_{side}" in findings:
            _draw_fracture(canvas, sign)
    for lobe, (cx, cy) in LOBE_CENTRES.items():
        if f"opacity_{lobe}" in findings:
            _draw_opacity(canvas, cx, cy)
    _draw_devices(canvas, findings)
    return canvas.finish()


def _lung(canvas: ChestCanvas, sign: float, scale: float = 1.0) -> Plane:
    inside = canvas.ellipse(0.5 + sign * 0.215, 0.50, 0.165 * scale, 0.36 * scale)
    return inside * np.clip((LUNG_BASE - canvas.y) / 0.01, 0, 1)


def _draw_anatomy(canvas: ChestCanvas, large_hila: bool) -> None:
    canvas.paint(canvas.ellipse(0.5, 0.58, 0.48, 0.56), 0.42)
    for sign in (-1.0, 1.0):
        canvas.paint(_lung(canvas, sign), 0.16)
        ribs = 0.5 + 0.5 * np.sin((canvas.y + 0.25 * np.abs(canvas.x - 0.5)) * 62)
        canvas.add(_lung(canvas, sign) * ribs, 0.06)
        radius, light = (0.065, 0.34) if large_hila else (0.03, 0.10)
        canvas.add(canvas.ellipse(0.5 + sign * 0.115, 0.46 + canvas.jitter(0.01), radius, radius * 1.2), light)
    canvas.paint(canvas.box(0.465, 0.0, 0.535, 0.95), 0.50)
    canvas.paint(canvas.box(0.485, 0.0, 0.515, 0.38), 0.28)


def _draw_heart(canvas: ChestCanvas, cardiomegaly: str) -> None:
    """Over the fluid, so that its width shows whatever else there is."""
    width = HEART_WIDTHS[cardiomegaly] + canvas.jitter(0.008)
    canvas.paint(canvas.ellipse(0.52 + width * 0.12, 0.66, width, 0.135 + canvas.jitter(0.008)), 0.68)


def _draw_effusion(canvas: ChestCanvas, sign: float, size: str) -> None:
    lateral = np.clip(sign * (canvas.x - 0.5) / 0.38, 0, 1)
    height = EFFUSION_HEIGHTS[size] + canvas.jitter(0.012)
    level = LUNG_BASE - height * (0.75 + 0.35 * lateral)
    canvas.paint(_lung(canvas, sign) * np.clip((canvas.y - level) / canvas.soft + 0.5, 0, 1), 0.50)


def _draw_pneumothorax(canvas: ChestCanvas, sign: float) -> None:
    outer, inner = _lung(canvas, sign), canvas.ellipse(0.5 + sign * 0.185, 0.54, 0.115, 0.30)
    edge = np.clip(canvas.ellipse(0.5 + sign * 0.185, 0.54, 0.135, 0.32) - inner, 0, 1)
    upper = np.clip((0.62 - canvas.y) / 0.04, 0, 1) * outer
    canvas.paint((outer - outer * inner) * upper, 0.0)
    canvas.paint(edge * upper, 0.55)


def _draw_nodule(canvas: ChestCanvas, sign: float) -> None:
    cx, cy = 0.5 + sign * (0.215 + canvas.jitter(0.04)), 0.42 + canvas.jitter(0.10)
    canvas.paint(canvas.ellipse(cx, cy, 0.048, 0.048), 1.0)


def _draw_fracture(canvas: ChestCanvas, sign: float) -> None:
    x, y = 0.5 + sign * 0.415, 0.56 + canvas.jitter(0.08)
    canvas.paint(canvas.box(x - 0.04, y - 0.045, x + 0.04, y + 0.045), 0.08)
    canvas.paint(canvas.line(x - 0.035, y - 0.03, x + 0.005, y - 0.01, 0.03), 1.0)
    canvas.paint(canvas.line(x - 0.005, y + 0.012, x + 0.035, y + 0.032, 0.03), 1.0)


def _draw_opacity(canvas: ChestCanvas, cx: float, cy: float) -> None:
    x, y = cx + canvas.jitter(0.015), cy + canvas.jitter(0.015)
    distance = ((canvas.x - x) / 0.075) ** 2 + ((canvas.y - y) / 0.06) ** 2
    canvas.add(np.exp(-(distance**2)), 0.40)


def _draw_devices(canvas: ChestCanvas, findings: Mapping[str, str]) -> None:
    if "pacemaker" in findings:
        x, y = 0.84 + canvas.jitter(0.01), 0.17 + canvas.jitter(0.015)
        canvas.paint(canvas.line(x, y, 0.60, 0.26, 0.022), 0.95)
        canvas.paint(canvas.line(0.60, 0.26, 0.55, 0.68, 0.022), 0.95)
        canvas.paint(canvas.box(x - 0.06, y - 0.05, x + 0.06, y + 0.05), 1.0)
    if "endotracheal_tube" in findings:
        canvas.paint(canvas.line(0.5, 0.0, 0.5 + canvas.jitter(0.008), 0.36 + canvas.jitter(0.02), 0.03), 1.0)
    if "central_line" in findings:
        y = 0.12 + canvas.jitter(0.02)
        canvas.paint(canvas.line(0.16, y, 0.43, y + 0.07, 0.026), 0.95)
        canvas.paint(canvas.line(0.43, y + 0.07, 0.455, 0.50, 0.026), 0.95)
