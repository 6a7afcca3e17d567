"""The generator ``discs``: a disc of its colour for every label, on tiled grey ground."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray
from pydantic import Field

from magicseg.backends import GenerateRequest, Image, ImagePair, Rejection
from magicseg.settings import Settings
from magicseg_colours.colours import colour_of

RECIPE = 1  # goes up whenever the same request gives other pixels


class HasSize(Protocol):
    """What the generator needs of the stage's settings."""

    @property
    def size(self) -> int:
        """Side of the square images in pixels."""


class DiscGenerator:
    """Back end of the generate stage. Both images of a pair are equal but for the discs."""

    class Options(Settings):
        """How the ground looks."""

        tiles: int = Field(8, ge=1, le=64, description="along each side")
        grain: float = Field(6.0, ge=0, le=12, description="noise of every pixel, standard deviation in 0 to 255")

    @classmethod
    def identity(cls, options: "DiscGenerator.Options") -> Mapping[str, str | int]:
        """The recipe's number: pixels change only with it."""
        return {"discs": RECIPE}

    def __init__(self, settings: HasSize, options: "DiscGenerator.Options") -> None:
        self._size, self._options = settings.size, options

    def generate(self, requests: Sequence[GenerateRequest]) -> list[ImagePair | Rejection]:
        """One pair per request, decided by its labels and seed alone."""
        return [self._pair(request) for request in requests]

    def _pair(self, request: GenerateRequest) -> ImagePair | Rejection:
        rng = Generator(Philox(request.seed))
        size, tiles = self._size, self._options.tiles
        rows, columns = np.indices((size, size))
        ground = rng.uniform(90, 150, (tiles, tiles))[rows * tiles // size, columns * tiles // size]
        grain = rng.normal(0, self._options.grain, (size, size, 3))
        empty = ground[..., None] + grain
        full = empty.copy()
        width = size / len(request.labels)  # of the strip that each disc has to itself
        radii = []
        for place, label in enumerate(request.labels):
            colour = colour_of(label)
            if colour is None:
                return Rejection(reason="no-colour", detail=label.name)
            radius = width * rng.uniform(0.25, 0.4)
            x = rng.uniform(place * width + radius, (place + 1) * width - radius)
            y = rng.uniform(radius, size - radius)
            inside = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
            full[inside] = colour + grain[inside]
            radii.append(round(radius, 2))
        return ImagePair(image=_pixels(full), counterfactual=_pixels(empty), quality={"radii": radii})


def _pixels(picture: NDArray[np.float64]) -> Image:
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)
