"""Draw the ten objects, each in a unit square: x to the right, y down, both from -0.5 to 0.5."""

import math
from collections.abc import Callable, Sequence

from numpy.random import Generator
from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Point = tuple[float, float]

PALETTE: dict[str, Colour] = {
    "red": (205, 40, 40),
    "orange": (235, 130, 30),
    "yellow": (235, 205, 50),
    "green": (55, 150, 60),
    "blue": (45, 90, 200),
    "purple": (130, 60, 165),
    "pink": (235, 130, 175),
    "white": (240, 240, 236),
}
DARK: Colour = (38, 36, 40)
CREAM: Colour = (236, 226, 202)
GLASS: Colour = (170, 205, 225)
STEM: Colour = (60, 120, 50)


def shade(colour: Colour, factor: float) -> Colour:
    """Return the colour darkened (factor below 1) or lightened towards white (factor above 1, at most 2)."""
    if factor <= 1:
        red, green, blue = (channel * factor for channel in colour)
    else:
        red, green, blue = (channel + (255 - channel) * (factor - 1) for channel in colour)
    return (round(red), round(green), round(blue))


def arc(x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360) -> list[Point]:
    """Return points on an ellipse from ``start`` to ``end`` degrees; 0 is right, 90 is down."""
    steps = max(8, round(abs(end - start) / 15))
    angles = (math.radians(start + (end - start) * step / steps) for step in range(steps + 1))
    return [(x + rx * math.cos(angle), y + ry * math.sin(angle)) for angle in angles]


class Pen:
    """Draw shapes of an object's unit square onto a canvas, and record the covered pixels.

    Args: canvas: side of the square canvas in pixels. centre: of the object, in pixels. scale: pixels per
    unit. turn: clockwise, in radians. flip: mirror left and right.
    """

    def __init__(self, canvas: int, *, centre: Point, scale: float, turn: float, flip: bool) -> None:
        self.colours = Image.new("RGB", (canvas, canvas))  # black where nothing is drawn
        self.cover = Image.new("L", (canvas, canvas))
        self.lowest = 0.0  # the largest y of any drawn point, in pixels
        self._draw = (ImageDraw.Draw(self.colours), ImageDraw.Draw(self.cover))
        self._scale = scale
        cos, sin = math.cos(turn) * scale, math.sin(turn) * scale
        side = -1.0 if flip else 1.0
        self._matrix = (side * cos, -sin, centre[0], side * sin, cos, centre[1])

    def _place(self, points: Sequence[Point]) -> list[Point]:
        xx, xy, x0, yx, yy, y0 = self._matrix
        placed = [(xx * x + xy * y + x0, yx * x + yy * y + y0) for x, y in points]
        self.lowest = max(self.lowest, max(y for _, y in placed))
        return placed

    def polygon(self, points: Sequence[Point], colour: Colour, *, edge: bool = True) -> None:
        """Draw a filled polygon, with a darker outline if ``edge``."""
        placed = self._place(points)
        self._draw[0].polygon(placed, fill=colour)
        self._draw[1].polygon(placed, fill=255)
        if edge:
            width = max(1, round(0.022 * self._scale))
            self._draw[0].line([*placed, placed[0]], fill=shade(colour, 0.55), width=width)
            self._draw[1].line([*placed, placed[0]], fill=255, width=width)

    def rectangle(self, x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        """Draw an upright filled rectangle with an outline."""
        self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], colour)

    def ellipse(self, x: float, y: float, rx: float, ry: float, colour: Colour, *, edge: bool = True) -> None:
        """Draw a filled ellipse."""
        self.polygon(arc(x, y, rx, ry), colour, edge=edge)

    def stroke(self, points: Sequence[Point], width: float, colour: Colour) -> None:
        """Draw a line of the given width (in units) through the points."""
        placed = self._place(points)
        pixels = max(1, round(width * self._scale))
        self._draw[0].line(placed, fill=colour, width=pixels, joint="curve")
        self._draw[1].line(placed, fill=255, width=pixels, joint="curve")


def _car(pen: Pen, colour: Colour, rng: Generator) -> None:
    back, front = rng.uniform(-0.36, -0.24), rng.uniform(0.14, 0.3)
    roof, waist, floor = rng.uniform(-0.26, -0.17), rng.uniform(-0.04, 0.02), 0.18
    slope = rng.uniform(0.06, 0.14)
    pen.polygon([(back, waist), (back + slope * 0.7, roof), (front - slope, roof), (front + 0.03, waist)], colour)
    middle = (back + front) / 2
    for x0, x1 in ((back + 0.06, middle - 0.02), (middle + 0.02, front - 0.03)):
        inner = slope * 0.5
        left, right = (inner, 0.0) if x0 < middle - 0.03 else (0.0, inner)
        pen.polygon(
            [(x0, waist), (x0 + left, roof + 0.05), (x1 - right, roof + 0.05), (x1, waist)],
            GLASS,
            edge=False,
        )
    nose = waist + rng.uniform(0.02, 0.07)
    pen.polygon(
        [(-0.5, waist + 0.02), (-0.46, waist), (front, waist), (0.47, nose), (0.5, floor), (-0.5, floor)],
        colour,
    )
    pen.ellipse(0.46, nose + 0.06, 0.03, 0.03, (250, 240, 170), edge=False)
    radius = rng.uniform(0.1, 0.125)
    for x in (-0.29, 0.29):
        pen.ellipse(x, floor, radius, radius, DARK)
        pen.ellipse(x, floor, radius * 0.45, radius * 0.45, (170, 172, 176), edge=False)


def _house(pen: Pen, colour: Colour, rng: Generator) -> None:
    half, eaves = rng.uniform(0.32, 0.42), rng.uniform(-0.12, 0.0)
    roofs: tuple[Colour, ...] = ((140, 60, 45), (85, 85, 95), (110, 75, 50), shade(colour, 0.6))
    roof = roofs[rng.integers(len(roofs))]
    if rng.random() < 0.6:
        x = rng.uniform(0.12, 0.24)
        pen.rectangle(x, -0.44, x + 0.1, eaves, (130, 80, 65))
    pen.rectangle(-half, eaves, half, 0.46, colour)
    top = rng.uniform(0.0, 0.12)
    over = half + 0.07
    pen.polygon([(-over, eaves), (-top, -0.46), (top, -0.46), (over, eaves)], roof)
    door = rng.uniform(-0.22, 0.05)
    pen.rectangle(door, 0.14, door + 0.15, 0.46, shade(roof, 0.75))
    for x in (-half + 0.06, half - 0.2):
        if abs(x + 0.07 - door - 0.075) > 0.16:
            pen.rectangle(x, eaves + 0.12, x + 0.14, eaves + 0.26, GLASS)


def _tree(pen: Pen, colour: Colour, rng: Generator) -> None:
    half = rng.uniform(0.045, 0.07)
    bark: Colour = (110, 75, 45)
    pen.polygon([(-half, 0.0), (half, 0.0), (half * 1.4, 0.5), (-half * 1.4, 0.5)], bark)
    if rng.random() < 0.4:  # a conifer
        layers = int(rng.integers(3, 5))
        for layer in range(layers):
            low = 0.28 - layer * 0.72 / (layers + 0.4)
            wide = 0.34 - layer * 0.25 / layers
            pen.polygon([(-wide, low), (0.0, low - 0.34), (wide, low)], shade(colour, 0.9 + 0.08 * layer))
        return
    blobs = int(rng.integers(5, 8))
    first = rng.uniform(0, 360)
    for blob in range(blobs):
        angle = math.radians(first + 360 * blob / blobs)
        radius = rng.uniform(0.14, 0.19)
        pen.ellipse(0.22 * math.cos(angle), -0.16 + 0.17 * math.sin(angle), radius, radius, shade(colour, 0.85))
    pen.ellipse(0.0, -0.16, 0.24, 0.2, colour, edge=False)
    for _ in range(6):
        x, y = rng.uniform(-0.22, 0.22), rng.uniform(-0.34, 0.02)
        pen.ellipse(x, y, 0.04, 0.035, shade(colour, rng.uniform(0.7, 1.3)), edge=False)


def _boat(pen: Pen, colour: Colour, rng: Generator) -> None:
    deck, keel = rng.uniform(0.14, 0.2), 0.42
    mast = rng.uniform(-0.08, 0.06)
    pen.stroke([(mast, deck), (mast, -0.48)], 0.045, (105, 75, 50))
    sail = CREAM if rng.random() < 0.7 else shade(colour, 1.5)
    pen.polygon([(mast + 0.04, -0.46), (mast + 0.04, deck - 0.06), (0.42, deck - 0.06)], sail)
    if rng.random() < 0.7:
        pen.polygon([(mast - 0.04, -0.38), (mast - 0.04, deck - 0.06), (-0.38, deck - 0.06)], shade(sail, 0.9))
    inset = rng.uniform(0.1, 0.2)
    pen.polygon([(-0.5, deck), (0.5, deck), (0.5 - inset, keel), (-0.5 + inset * 0.8, keel)], colour)
    pen.polygon(
        [(-0.49, deck + 0.03), (0.49, deck + 0.03), (0.46, deck + 0.09), (-0.46, deck + 0.09)],
        shade(colour, 1.6),
        edge=False,
    )


def _umbrella(pen: Pen, colour: Colour, rng: Generator) -> None:
    rim, top = rng.uniform(-0.06, 0.02), rng.uniform(-0.46, -0.4)
    hook = rng.uniform(0.06, 0.09)
    pen.stroke([(0.0, top - 0.04), (0.0, 0.38)], 0.05, (75, 60, 55))
    pen.stroke(arc(hook, 0.38, hook, hook, 180, 0), 0.05, (75, 60, 55))
    panels = int(rng.integers(4, 7))
    other = shade(colour, 0.72) if rng.random() < 0.5 else shade(colour, 1.65)
    xs = [-0.48 * math.cos(math.pi * edge / panels) for edge in range(panels + 1)]
    for panel in range(panels):
        x0, x1 = xs[panel], xs[panel + 1]
        up = [(x0 * math.sin(t), rim + (top - rim) * math.cos(t)) for t in (1.57, 1.25, 0.9, 0.5, 0.0)]
        down = [(x1 * math.sin(t), rim + (top - rim) * math.cos(t)) for t in (0.5, 0.9, 1.25, 1.57)]
        bow = arc((x0 + x1) / 2, rim, (x1 - x0) / 2, -0.05, 0, 180)
        pen.polygon(up + down + bow, colour if panel % 2 else other)


def _fish(pen: Pen, colour: Colour, rng: Generator) -> None:
    tall = rng.uniform(0.18, 0.25)
    fin = shade(colour, 0.75)
    pen.polygon([(-0.24, 0.0), (-0.5, -0.22), (-0.42, 0.0), (-0.5, 0.22)], fin)
    high = rng.uniform(0.1, 0.16)
    pen.polygon([(-0.1, -tall * 0.7), (0.0, -tall - high), (0.2, -tall * 0.6)], fin)
    pen.polygon([(-0.05, tall * 0.7), (0.0, tall + high * 0.8), (0.12, tall * 0.7)], fin)
    pen.ellipse(0.1, 0.0, 0.4, tall, colour)
    stripes = int(rng.integers(0, 4))
    for stripe in range(stripes):
        x = -0.12 + 0.12 * stripe
        reach = tall * math.sqrt(max(0.0, 1 - ((x - 0.1) / 0.4) ** 2)) * 0.85
        pen.stroke([(x, -reach), (x + 0.02, reach)], 0.05, shade(colour, 1.6))
    pen.stroke(arc(0.22, 0.0, 0.05, tall * 0.75, 100, 260), 0.02, shade(colour, 0.55))
    pen.ellipse(0.36, -0.05, 0.05, 0.05, (250, 250, 250), edge=False)
    pen.ellipse(0.37, -0.05, 0.025, 0.025, DARK, edge=False)


def _flower(pen: Pen, colour: Colour, rng: Generator) -> None:
    bend = rng.uniform(-0.08, 0.08)
    pen.stroke([(0.0, -0.16), (bend, 0.2), (bend * 0.5, 0.5)], 0.06, STEM)
    for side in (-1, 1):
        y = rng.uniform(0.22, 0.34)
        tip = side * rng.uniform(0.2, 0.28)
        pen.polygon([(bend, y + 0.08), (tip * 0.5, y - 0.06), (tip + bend, y - 0.08), (tip * 0.7, y + 0.05)], STEM)
    petals = int(rng.integers(5, 9))
    first = rng.uniform(0, 360)
    long, wide = rng.uniform(0.13, 0.16), rng.uniform(0.07, 0.09) * 7 / petals
    for petal in range(petals):
        angle = math.radians(first + 360 * petal / petals)
        cos, sin = math.cos(angle), math.sin(angle)
        outline = [(0.17 + x, y) for x, y in arc(0, 0, long, wide)]
        pen.polygon([(cos * x - sin * y, sin * x + cos * y - 0.18) for x, y in outline], colour)
    heart: Colour = (240, 190, 40) if rng.random() < 0.6 else (100, 65, 40)
    pen.ellipse(0.0, -0.18, 0.095, 0.095, heart)


def _mushroom(pen: Pen, colour: Colour, rng: Generator) -> None:
    half = rng.uniform(0.1, 0.15)
    rim, top = rng.uniform(0.0, 0.08), rng.uniform(-0.42, -0.34)
    pen.polygon(
        [(half * x, y) for x, y in ((-1, rim), (1, rim), (1.2, 0.4), (0.8, 0.46), (-0.8, 0.46), (-1.2, 0.4))],
        CREAM,
    )
    wide = rng.uniform(0.4, 0.48)
    pen.polygon(arc(0.0, rim, wide, rim - top, 180, 360) + arc(0.0, rim, wide, 0.07, 0, 180), colour)
    spot = shade(colour, 1.85) if sum(colour) < 640 else (190, 160, 140)
    for _ in range(int(rng.integers(4, 8))):
        angle, out = rng.uniform(200, 340), rng.uniform(0.15, 0.75)
        x, y = arc(0.0, rim, wide * out, (rim - top) * out, angle, angle)[0]
        size = rng.uniform(0.035, 0.06)
        pen.ellipse(x, y, size, size * 0.85, spot, edge=False)


def _kite(pen: Pen, colour: Colour, rng: Generator) -> None:
    wide, cross = rng.uniform(0.26, 0.34), rng.uniform(-0.26, -0.18)
    top, low = -0.5, rng.uniform(0.1, 0.18)
    sway = rng.uniform(0.06, 0.1) * rng.choice((-1, 1))
    tail = [(sway * math.sin(step * 1.1), low + (0.5 - low) * step / 8) for step in range(9)]
    pen.stroke(tail, 0.035, DARK)
    other = shade(colour, 1.6) if rng.random() < 0.5 else shade(colour, 0.65)
    centre = (0.0, cross)
    corners = [(0.0, top), (wide, cross), (0.0, low), (-wide, cross)]
    for corner in range(4):
        pair = [centre, corners[corner], corners[(corner + 1) % 4]]
        pen.polygon(pair, colour if corner % 2 else other)
    for step in (3, 6):
        x, y = tail[step]
        pen.polygon([(x - 0.08, y - 0.04), (x + 0.08, y + 0.04), (x + 0.08, y - 0.04), (x - 0.08, y + 0.04)], colour)


def _cup(pen: Pen, colour: Colour, rng: Generator) -> None:
    top, low = rng.uniform(-0.32, -0.22), rng.uniform(0.32, 0.4)
    wide, foot = rng.uniform(0.27, 0.33), rng.uniform(0.19, 0.27)
    middle, left = (top + low) / 2, -0.1
    pen.stroke(arc(left + wide - 0.02, middle - 0.02, 0.2, (low - top) * 0.28, -100, 110), 0.075, shade(colour, 0.75))
    pen.polygon([(left - wide, top), *arc(left, low, foot, 0.06, 180, 0), (left + wide, top)], colour)
    if rng.random() < 0.5:
        y0, y1 = middle - 0.06, middle + 0.08
        pen.polygon(
            [(left + x * wide, y) for x, y in ((-0.92, y0), (0.92, y0), (0.86, y1), (-0.86, y1))],
            shade(colour, 1.6) if rng.random() < 0.5 else shade(colour, 0.65),
            edge=False,
        )
    pen.ellipse(left, top, wide, 0.08, shade(colour, 1.3))
    pen.ellipse(left, top + 0.01, wide * 0.82, 0.05, (70, 45, 30), edge=False)


OBJECTS: dict[str, Callable[[Pen, Colour, Generator], None]] = {
    "car": _car,
    "house": _house,
    "tree": _tree,
    "boat": _boat,
    "umbrella": _umbrella,
    "fish": _fish,
    "flower": _flower,
    "mushroom": _mushroom,
    "kite": _kite,
    "cup": _cup,
}
