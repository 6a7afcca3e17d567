"""The captioner of painted scenes: a closed grammar. The miniature's painter can parse all of its words."""

from collections.abc import Mapping, Sequence

from numpy.random import Generator, Philox

from magicseg.backends import DescribeRequest, Description, Rejection
from magicseg.core.settings import Settings
from magicseg.labels import Label
from magicseg.stages.describe.choices import checked_description, choose, names_or_shows, sentence
from magicseg.stages.describe.naming import article, takes_article
from magicseg.stages.describe.words import COLOURS, EMPTY, LIGHTS, OPENINGS, PLACES, SCENES, SIZES

RECIPE = 3  # incremented whenever the captions of the same requests change


class GrammarCaptioner:
    """Back end of the describe stage. Each choice is uniform among the choices that neither name nor show a label."""

    class Options(Settings):
        """The grammar has no options."""

    @classmethod
    def identity(cls, options: "GrammarCaptioner.Options") -> Mapping[str, str | int]:
        """Return the recipe's number. Captions change only with it."""
        return {"grammar": RECIPE}

    def __init__(self, settings: object, options: "GrammarCaptioner.Options") -> None:
        """Ignore the stage's settings."""

    def describe(self, requests: Sequence[DescribeRequest]) -> list[Description | Rejection]:
        """Return one description per request. It depends only on the request's labels and seed."""
        return [_describe(request) for request in requests]


def _describe(request: DescribeRequest) -> Description | Rejection:
    if not request.labels:
        return Rejection(reason="no-labels")
    if len(request.labels) > len(PLACES):
        return Rejection(reason="too-many-labels", detail=f"{len(request.labels)}, at most {len(PLACES)}")
    rng = Generator(Philox(request.seed))
    opening = choose(rng, OPENINGS, request.labels) or ""
    scene = choose(rng, SCENES, request.labels)
    light = choose(rng, LIGHTS, request.labels)
    scene_first = bool(rng.random() < 0.5) and not opening
    objects = _objects(rng, request.labels)
    if scene is None:
        return Rejection(reason="no-scene", detail="every scene of the grammar names or shows one of the labels")
    when = f" {light.text}" if light else ""
    caption = f"{scene.text}{when}, {objects}" if scene_first else f"{opening}{objects}, {scene.text}{when}"
    bare = f"{opening}{article(EMPTY)} {EMPTY} {scene.word}{when}"
    return checked_description(request.labels, sentence(caption), sentence(bare))


def _objects(rng: Generator, labels: Sequence[Label]) -> str:
    """Return the labels with size, colour and place, joined by "and". No two labels share a place."""
    places = [PLACES[number] for number in rng.permutation(len(PLACES))]
    phrases = []
    for label, place in zip(labels, places, strict=False):
        size, colour = choose(rng, SIZES, labels), choose(rng, COLOURS, labels)
        words = " ".join(word for word in (size, colour, label.text) if word)
        where = f" {place.text}" if not names_or_shows(place, labels) else ""
        phrases.append(f"{article(words)} {words}{where}" if takes_article(label.text) else words + where)
    return " and ".join(phrases)
