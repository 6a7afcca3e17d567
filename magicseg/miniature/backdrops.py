"""Paint the scenes behind the objects: backdrop, texture and clutter, all from one random generator."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from magicseg.miniature.objects import PALETTE, Colour, shade

Canvas = ImageDraw.ImageDraw


def _jitter(rng: Generator, colour: Colour, by: int = 16) -> Colour:
    red, green, blue = np.clip(np.add(colour, rng.integers(-by, by + 1, 3)), 0, 255)
    return (int(red), int(green), int(blue))


def _gradient(draw: Canvas, n: int, y0: float, y1: float, above: Colour, below: Colour) -> None:
    """Fill a canvas of side n with a gradient of colours between y0 and y1 (fractions of its height)."""
    bands = 12
    for band in range(bands):
        mix = (band + 0.5) / bands
        red, green, blue = (round(a + (b - a) * mix) for a, b in zip(above, below, strict=True))
        top, bottom = y0 + (y1 - y0) * band / bands, y0 + (y1 - y0) * (band + 1) / bands
        draw.rectangle((0, top * n, n, bottom * n), fill=(red, green, blue))


def _ridge(draw: Canvas, n: int, rng: Generator, y: float, rough: float, colour: Colour) -> None:
    """Draw a line of hills and fill the area below it."""
    heights = y + rough * (rng.random(9) - 0.5)
    xs = np.linspace(-0.05, 1.05, 9)
    draw.polygon(
        [(float(x) * n, float(h) * n) for x, h in zip(xs, heights, strict=True)] + [(1.05 * n, n), (-0.05 * n, n)],
        fill=colour,
    )


def _clouds(draw: Canvas, n: int, rng: Generator, colour: Colour, most: int) -> None:
    for _ in range(int(rng.integers(0, most + 1))):
        x, y, r = rng.uniform(0, 1), rng.uniform(0.02, 0.28), rng.uniform(0.04, 0.09)
        for step in range(4):
            cx, cy, s = x + (step - 1.5) * r, y + r * 0.3 * (step % 2), r * (1.0 - 0.15 * abs(step - 1.5))
            draw.ellipse(((cx - s) * n, (cy - s * 0.7) * n, (cx + s) * n, (cy + s * 0.7) * n), fill=colour)


def _sky(draw: Canvas, n: int, rng: Generator, low: float) -> None:
    _gradient(draw, n, 0, low, _jitter(rng, (95, 155, 220), 25), _jitter(rng, (190, 215, 235), 20))
    _clouds(draw, n, rng, _jitter(rng, (236, 238, 242), 10), 3)


def _beach(draw: Canvas, n: int, rng: Generator) -> None:
    far, shore = rng.uniform(0.25, 0.4), rng.uniform(0.48, 0.66)
    _sky(draw, n, rng, far + 0.04)
    _gradient(draw, n, far, shore + 0.06, _jitter(rng, (35, 105, 160)), _jitter(rng, (75, 175, 190)))
    for _ in range(5):
        x, y = rng.uniform(0, 1), rng.uniform(far + 0.03, shore)
        draw.line((x * n, y * n, (x + 0.15) * n, y * n), fill=(205, 225, 230), width=max(1, n // 90))
    sand = _jitter(rng, (222, 196, 145))
    _ridge(draw, n, rng, shore, 0.05, shade(sand, 1.5))
    _ridge(draw, n, rng, shore + 0.025, 0.05, sand)


def _meadow(draw: Canvas, n: int, rng: Generator) -> None:
    far = rng.uniform(0.3, 0.5)
    _sky(draw, n, rng, far + 0.1)
    for step in range(3):
        _ridge(draw, n, rng, far + 0.09 * step, 0.1, _jitter(rng, (85 + 18 * step, 140 + 12 * step, 70), 18))
    for _ in range(24):
        x, y = rng.uniform(0, 1), rng.uniform(far + 0.25, 1)
        draw.line(
            (x * n, y * n, (x + rng.uniform(-0.02, 0.02)) * n, (y - 0.045) * n),
            fill=_jitter(rng, (60, 120, 50), 25),
            width=max(1, n // 80),
        )


def _street(draw: Canvas, n: int, rng: Generator) -> None:
    kerb = rng.uniform(0.42, 0.55)
    brick = _jitter(rng, ((160, 90, 75), (150, 140, 130), (190, 170, 140))[rng.integers(3)])
    draw.rectangle((0, 0, n, kerb * n), fill=brick)
    rows = int(rng.integers(6, 11))
    for row in range(rows):
        y = kerb * row / rows
        draw.line((0, y * n, n, y * n), fill=shade(brick, 0.8), width=max(1, n // 100))
        for column in range(5):
            x = (column + 0.5 * (row % 2)) / 5
            draw.line((x * n, y * n, x * n, (y + kerb / rows) * n), fill=shade(brick, 0.8), width=max(1, n // 100))
    draw.rectangle((0, kerb * n, n, (kerb + 0.1) * n), fill=_jitter(rng, (175, 172, 168)))
    _gradient(draw, n, kerb + 0.1, 1, _jitter(rng, (75, 76, 82)), _jitter(rng, (105, 105, 108)))
    first, line = rng.uniform(-0.2, 0.0), rng.uniform(0.74, 0.88)
    for dash in range(4):
        x = first + 0.34 * dash
        draw.rectangle((x * n, line * n, (x + 0.18) * n, (line + 0.035) * n), fill=(225, 222, 205))


def _desert(draw: Canvas, n: int, rng: Generator) -> None:
    far = rng.uniform(0.32, 0.5)
    _gradient(draw, n, 0, far + 0.08, _jitter(rng, (120, 175, 215), 20), _jitter(rng, (240, 220, 185)))
    x, y, r = rng.uniform(0.1, 0.9), rng.uniform(0.06, 0.2), rng.uniform(0.03, 0.06)
    draw.ellipse(((x - r) * n, (y - r) * n, (x + r) * n, (y + r) * n), fill=(255, 244, 200))
    for step in range(4):
        _ridge(draw, n, rng, far + 0.15 * step, 0.16, _jitter(rng, (225 - 13 * step, 160 - 8 * step, 95), 14))


def _snowfield(draw: Canvas, n: int, rng: Generator) -> None:
    far = rng.uniform(0.35, 0.5)
    _gradient(draw, n, 0, far + 0.1, _jitter(rng, (140, 165, 195), 25), _jitter(rng, (210, 220, 232)))
    peaks = int(rng.integers(2, 5))
    for peak in range(peaks):
        x, top, wide = (peak + rng.random()) / peaks, far - rng.uniform(0.08, 0.24), rng.uniform(0.15, 0.32)
        rock = _jitter(rng, (120, 130, 148))
        draw.polygon(
            [((x - wide) * n, (far + 0.1) * n), (x * n, top * n), ((x + wide) * n, (far + 0.1) * n)],
            fill=rock,
        )
    for step in range(3):
        _ridge(draw, n, rng, far + 0.16 * step, 0.09, _jitter(rng, (222 + 6 * step, 230 + 4 * step, 240), 8))


def _room(draw: Canvas, n: int, rng: Generator) -> None:
    floor = rng.uniform(0.55, 0.72)
    tones: tuple[Colour, ...] = ((205, 190, 165), (165, 185, 190), (195, 165, 165), (175, 185, 150))
    wall = _jitter(rng, tones[rng.integers(len(tones))], 20)
    draw.rectangle((0, 0, n, floor * n), fill=wall)
    stripes = int(rng.integers(0, 9))
    for stripe in range(stripes):
        x = (stripe + 0.25) / stripes
        draw.rectangle((x * n, 0, (x + 0.4 / stripes) * n, floor * n), fill=shade(wall, 0.92))
    if rng.random() < 0.7:  # a window or a framed painting
        x, y, w, h = (
            rng.uniform(0.02, 0.7),
            rng.uniform(0.04, 0.2),
            rng.uniform(0.15, 0.28),
            rng.uniform(0.15, 0.3),
        )
        draw.rectangle(((x - 0.02) * n, (y - 0.02) * n, (x + w + 0.02) * n, (y + h + 0.02) * n), fill=(120, 90, 65))
        draw.rectangle((x * n, y * n, (x + w) * n, (y + h) * n), fill=_jitter(rng, (160, 190, 205), 40))
    wood = _jitter(rng, (150, 110, 75), 25)
    draw.rectangle((0, floor * n, n, n), fill=wood)
    for board in range(4):
        y = floor + (1 - floor) * board / 4
        draw.line((0, y * n, n, y * n), fill=shade(wood, 0.75), width=max(1, n // 90))
    draw.rectangle((0, (floor - 0.03) * n, n, floor * n), fill=shade(wall, 1.4))


def _lake(draw: Canvas, n: int, rng: Generator) -> None:
    far, bank = rng.uniform(0.28, 0.42), rng.uniform(0.68, 0.85)
    _sky(draw, n, rng, far + 0.04)
    _ridge(draw, n, rng, far - 0.06, 0.14, _jitter(rng, (85, 115, 105), 20))
    _gradient(draw, n, far, bank + 0.06, _jitter(rng, (110, 150, 170)), _jitter(rng, (40, 85, 115)))
    for _ in range(10):
        x, y, w = rng.uniform(-0.1, 1), rng.uniform(far + 0.02, bank), rng.uniform(0.05, 0.2)
        draw.line((x * n, y * n, (x + w) * n, y * n), fill=_jitter(rng, (130, 170, 190), 20), width=max(1, n // 80))
    _ridge(draw, n, rng, bank, 0.08, _jitter(rng, (115, 125, 80), 20))


def _clutter(draw: Canvas, n: int, rng: Generator) -> None:
    """Draw stones, balls, boxes and posts in the objects' colours, so that colour alone identifies no object."""
    tones = list(PALETTE.values())
    for _ in range(int(rng.integers(1, 5))):
        x, y, s = rng.uniform(0.03, 0.97), rng.uniform(0.5, 0.97), rng.uniform(0.03, 0.07)
        tone = _jitter(rng, tones[rng.integers(len(tones))], 25)
        kind = int(rng.integers(4))
        if kind == 0:
            tone = _jitter(rng, (125, 120, 115), 30)
            draw.polygon(
                [((x + s * i) * n, (y - s * j) * n) for i, j in ((-1, 0), (-0.6, 1), (0.5, 0.9), (1, 0))],
                fill=tone,
            )
        elif kind == 1:
            draw.ellipse(((x - s) * n, (y - 2 * s) * n, (x + s) * n, y * n), fill=tone)
        elif kind == 2:
            draw.rectangle(((x - s) * n, (y - 1.6 * s) * n, (x + s) * n, y * n), fill=tone)
            draw.line(
                ((x - s) * n, (y - s) * n, (x + s) * n, (y - s) * n),
                fill=shade(tone, 0.6),
                width=max(1, n // 80),
            )
        else:
            draw.rectangle(((x - s * 0.3) * n, (y - 4 * s) * n, (x + s * 0.3) * n, y * n), fill=tone)


SCENES: dict[str, Callable[[Canvas, int, Generator], None]] = {
    "beach": _beach,
    "meadow": _meadow,
    "street": _street,
    "desert": _desert,
    "snowfield": _snowfield,
    "room": _room,
    "lake": _lake,
}


def paint_scene(scene: str, rng: Generator, *, size: int, supersampling: int) -> NDArray[np.float32]:
    """Paint the scene without objects in full daylight. Returns: float32 (size, size, 3), 0 to 255."""
    n = size * supersampling
    canvas = Image.new("RGB", (n, n))
    draw = ImageDraw.Draw(canvas)
    SCENES[scene](draw, n, rng)
    _clutter(draw, n, rng)
    image = np.asarray(canvas.reduce(supersampling), dtype=np.float32)
    return image + _texture(rng, size)[..., None]


def _texture(rng: Generator, size: int) -> NDArray[np.float32]:
    """Return smooth random brightness variations at two scales: float32 (size, size), about -25 to 25."""
    total = np.zeros((size, size), dtype=np.float32)
    for cells, strength in ((6, rng.uniform(4, 9)), (24, rng.uniform(3, 8))):
        grid = rng.standard_normal((cells, cells), dtype=np.float32) * np.float32(strength)
        total += np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BILINEAR))
    return total
