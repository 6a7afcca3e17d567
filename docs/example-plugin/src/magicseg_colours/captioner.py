"""The captioner ``colours``: "A photo of one red ball on a table"."""

from collections.abc import Mapping, Sequence

from numpy.random import Generator, Philox
from pydantic import Field

from magicseg.backends import DescribeRequest, Description, Rejection
from magicseg.settings import Settings
from magicseg_colours.colours import COLOURS, colour_of

RECIPE = 1  # goes up whenever the same request gives another caption


class ColourCaptioner:
    """Back end of the describe stage."""

    class Options(Settings):
        """Where things are."""

        places: tuple[str, ...] = Field(("table", "floor", "lawn"), min_length=1, description="one is drawn")

    @classmethod
    def identity(cls, options: "ColourCaptioner.Options") -> Mapping[str, str | int]:
        """The recipe's number: captions change only with it."""
        return {"colours": RECIPE}

    def __init__(self, settings: object, options: "ColourCaptioner.Options") -> None:
        """Needs nothing of the stage's settings."""
        self._places = options.places

    def describe(self, requests: Sequence[DescribeRequest]) -> list[Description | Rejection]:
        """One description per request, decided by its labels and seed alone."""
        return [self._described(request) for request in requests]

    def _described(self, request: DescribeRequest) -> Description | Rejection:
        for label in request.labels:
            if colour_of(label) is None:
                return Rejection(reason="no-colour", detail=f"{label.name!r} is not {', '.join(COLOURS)}")
        rng = Generator(Philox(request.seed))
        place = self._places[rng.integers(len(self._places))]
        objects = " and ".join(f"one {label.text}" for label in request.labels)
        caption = f"A photo of {objects} on a {place}"
        return Description(caption=caption, counterfactual=f"A photo of an empty {place}")
