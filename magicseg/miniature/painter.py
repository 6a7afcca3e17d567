"""The miniature's image generator: it paints the scene of a caption, and gives the exact class map."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray
from pydantic import Field

from magicseg.backends import ClassMap, GenerateRequest, Image, ImagePair, Rejection
from magicseg.core.errors import LabelError
from magicseg.core.settings import Settings
from magicseg.labels import BACKGROUND, Label
from magicseg.miniature.backdrops import paint_scene
from magicseg.miniature.caption import NOUNS, ObjectSpec, SceneSpec, UnreadableCaption, parse
from magicseg.miniature.objects import OBJECTS, PALETTE, Colour, Pen
from magicseg.stages.describe.words import COLOURS, PLACES

RECIPE = 1  # incremented whenever the pixels for the same seed and caption change

NOISE = 4.0
SUPERSAMPLING = 4

_SPANS = {"small": (0.38, 0.46), "medium-sized": (0.50, 0.60), "large": (0.64, 0.76)}  # fraction of the image
_CROWDED = 0.8  # factor on the spans for several objects
_CENTRES = {"left": 0.26, "middle": 0.5, "right": 0.74}
_TINTS = {  # factors on red, green, blue
    "dawn": (0.98, 0.84, 0.86),
    "noon": (1.0, 1.0, 1.0),
    "dusk": (0.92, 0.72, 0.58),
    "night": (0.48, 0.52, 0.72),
    "fog": (1.0, 1.0, 1.0),
}
_FOG, _FOG_SHARE = 205.0, 0.4
_SHADOW = 0.3
_LYING = frozenset({"car", "house", "tree", "boat", "flower", "mushroom", "cup", "umbrella"})  # cast a shadow

Plane = NDArray[np.float32]  # (height, width)
Colours = NDArray[np.float32]  # (height, width, 3), 0 to 255


class HasSize(Protocol):
    """The stage's settings that the painter uses."""

    @property
    def size(self) -> int:
        """Side of the square images in pixels."""


@dataclass(frozen=True, kw_only=True)
class Painted:
    """A painted image, the same image without its objects, and the class map."""

    image: Image
    empty: Image
    mask: ClassMap


@dataclass(frozen=True)
class _Layer:
    """One object: its colours premultiplied by its coverage, its coverage (0 to 1), and its shadow (0 to 1)."""

    colours: Colours
    cover: Plane
    shadow: Plane


def paint(
    scene: SceneSpec | str,
    *,
    seed: int,
    size: int = 64,
    labels: Sequence[Label],
    noise: float = NOISE,
    supersampling: int = SUPERSAMPLING,
) -> Painted:
    """Paint a scene. Equal arguments give equal pixels.

    Args: scene: a caption, or the result of `parse`. seed: for everything that the caption does not specify; images
    with the same seed share the sensor noise, and the backdrop if they show the same scene. size: side in pixels.
    labels: define the ids in the mask. noise: standard deviation, in units of 0 to 255. supersampling: painted pixels
    per pixel of the result, along each side.
    Raises: UnreadableCaption, or LabelError if an object has no label.
    """
    spec = parse(scene) if isinstance(scene, str) else scene
    ids = {label.name: label.id for label in labels}
    for item in spec.objects:
        if item.noun not in ids:
            raise LabelError(f"the scene shows {item.noun!r}, which is not among the {len(ids)} labels")
    image, empty, covers = _render(spec, seed, size, noise, supersampling)
    mask = np.full((size, size), BACKGROUND, dtype=np.uint16)
    if covers:
        stack = np.stack(covers)
        front = np.array([ids[item.noun] for item in spec.objects], dtype=np.uint16)[stack.argmax(axis=0)]
        mask = np.where(stack.sum(axis=0) >= 0.5, front, mask)
    return Painted(image=image, empty=empty, mask=mask)


def _render(
    spec: SceneSpec, seed: int, size: int, noise: float, supersampling: int
) -> tuple[Image, Image, list[Plane]]:
    """Return the image, the image without objects, and for each object the visible fraction of each pixel."""
    rng = Generator(Philox(seed))
    # This order makes the images with and without objects share noise and backdrop.
    grain = rng.standard_normal((size, size, 3), dtype=np.float32) * np.float32(noise)
    backdrop = paint_scene(spec.scene, rng, size=size, supersampling=supersampling)
    image = backdrop
    covers: list[Plane] = []
    for item in _decide(spec.objects, rng):
        layer = _draw(item, rng, size, supersampling, factor=_CROWDED if len(spec.objects) > 1 else 1.0)
        covers = [cover * (1 - layer.cover) for cover in covers] + [layer.cover]
        image = image * (1 - _SHADOW * layer.shadow[..., None])
        image = image * (1 - layer.cover[..., None]) + layer.colours
    return _expose(image, spec.light, grain), _expose(backdrop, spec.light, grain), covers


def _expose(colours: Colours, light: str | None, grain: Colours) -> Image:
    """Apply the light and the sensor noise, and convert to 8 bits."""
    if light is not None:
        colours = colours * np.array(_TINTS[light], dtype=np.float32)
    if light == "fog":
        colours = colours * np.float32(1 - _FOG_SHARE) + np.float32(_FOG * _FOG_SHARE)
    exposed: Image = np.clip(np.rint(colours + grain), 0, 255).astype(np.uint8)
    return exposed


def _decide(objects: Sequence[ObjectSpec], rng: Generator) -> list[ObjectSpec]:
    """Choose unspecified attributes at random. Unused places are drawn without replacement."""
    free = [place.word for place in PLACES if all(item.place != place.word for item in objects)]
    free = [free[number] for number in rng.permutation(len(free))]
    sizes = tuple(_SPANS)
    return [
        ObjectSpec(
            noun=item.noun,
            colour=item.colour or COLOURS[rng.integers(len(COLOURS))],
            size=item.size or sizes[rng.integers(len(sizes))],
            place=item.place or (free.pop() if free else PLACES[rng.integers(len(PLACES))].word),
        )
        for item in objects
    ]


def _draw(item: ObjectSpec, rng: Generator, size: int, supersampling: int, *, factor: float) -> _Layer:
    """Draw an object with complete attributes at its place in an image of ``size`` pixels."""
    assert item.colour is not None
    assert item.size is not None
    assert item.place is not None
    span = rng.uniform(*_SPANS[item.size]) * factor
    x = _CENTRES[item.place] + rng.uniform(-0.06, 0.06)
    x = min(max(x, 0.46 * span), 1 - 0.46 * span)
    low, high = (0.25, 0.5) if item.noun == "kite" else (0.4, 0.72)
    y = min(max(rng.uniform(low, high), 0.52 * span), 1 - 0.52 * span)
    turn = rng.normal(0, math.radians(18 if item.noun in {"kite", "fish", "umbrella"} else 5))
    canvas = size * supersampling
    pen = Pen(
        canvas,
        centre=(x * canvas, y * canvas),
        scale=span * canvas,
        turn=turn,
        flip=bool(rng.random() < 0.5),
    )
    OBJECTS[item.noun](pen, _vary(PALETTE[item.colour], rng), rng)
    colours = np.asarray(pen.colours.reduce(supersampling), dtype=np.float32)
    cover = np.asarray(pen.cover.reduce(supersampling), dtype=np.float32) / np.float32(255)
    steps = np.arange(size, dtype=np.float32) / np.float32(size)
    tilt = rng.uniform(-0.25, 0.25)
    light = 1.0 + tilt * (steps - x) / span - 0.2 * (steps[:, None] - y) / span  # brighter towards the sky
    colours = np.minimum(colours * np.clip(light, 0.7, 1.2).astype(np.float32)[..., None], 255 * cover[..., None])
    shadow = np.zeros_like(cover)
    if item.noun in _LYING:
        across = (steps - x) / np.float32(span * 0.65)
        down = (steps - pen.lowest / canvas) / np.float32(span * 0.12)
        shadow = np.maximum(1 - across**2 - (down**2)[:, None], 0).astype(np.float32) ** 2
    return _Layer(colours=colours, cover=cover, shadow=shadow)


def _vary(colour: Colour, rng: Generator) -> Colour:
    red, green, blue = np.clip(np.add(colour, rng.integers(-18, 19, 3)), 0, 255)
    return (int(red), int(green), int(blue))


class Painter:
    """Back end of the generate stage that paints with a few polygons instead of a diffusion model."""

    class Options(Settings):
        """The painter's options."""

        noise: float = Field(NOISE, ge=0, le=50, description="sensor noise, standard deviation in 0 to 255")
        supersampling: int = Field(SUPERSAMPLING, ge=1, le=8, description="painted pixels per pixel, along each side")

    @classmethod
    def identity(cls, options: "Painter.Options") -> Mapping[str, str | int]:
        """Return the recipe's number. Pixels change only with it."""
        return {"painter": RECIPE}

    def __init__(self, settings: HasSize, options: "Painter.Options") -> None:
        self._size = settings.size
        self._options = options

    def generate(self, requests: Sequence[GenerateRequest]) -> list[ImagePair | Rejection]:
        """Return one pair per request. Each image is painted from its caption, with the request's seed."""
        return [self._pair(request) for request in requests]

    def _pair(self, request: GenerateRequest) -> ImagePair | Rejection:
        unknown = [label.name for label in request.labels if label.name not in NOUNS]
        if unknown:
            return Rejection(reason="cannot-paint", detail=f"no drawing of {', '.join(map(repr, unknown))}")
        try:
            with_objects, without = parse(request.caption), parse(request.counterfactual)
        except UnreadableCaption as error:
            return Rejection(reason="cannot-paint", detail=str(error))
        image, empty = self._render(with_objects, request.seed)
        same = (without.scene, without.light) == (with_objects.scene, with_objects.light)
        if without.objects or not same:
            empty = self._render(without, request.seed)[0]
        return ImagePair(image=image, counterfactual=empty, quality={"objects": len(with_objects.objects)})

    def _render(self, spec: SceneSpec, seed: int) -> tuple[Image, Image]:
        options = self._options
        image, empty, _ = _render(spec, seed, self._size, options.noise, options.supersampling)
        return image, empty
