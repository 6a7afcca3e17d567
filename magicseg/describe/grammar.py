"""The captioner of drawn scenes: a closed grammar whose every word the miniature's painter can read."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from numpy.random import Generator, Philox

from magicseg.backends import DescribeRequest, Description, Rejection
from magicseg.describe.naming import article, mentions, takes_article
from magicseg.describe.words import COLOURS, EMPTY, LIGHTS, OPENINGS, PLACES, SCENES, SIZES, Phrase
from magicseg.labels import Label
from magicseg.settings import Settings

RECIPE = 2  # goes up whenever the same request gives another caption

_Choice = TypeVar("_Choice", str, Phrase)


class GrammarCaptioner:
    """Back end of the describe stage: each choice is uniform among those that bring none of the labels."""

    class Options(Settings):
        """The grammar has no settings of its own."""

    @classmethod
    def identity(cls, options: "GrammarCaptioner.Options") -> Mapping[str, str | int]:
        """The recipe's number: captions change only with it."""
        return {"grammar": RECIPE}

    def __init__(self, settings: object, options: "GrammarCaptioner.Options") -> None:
        """Needs nothing of the stage's settings."""

    def describe(self, requests: Sequence[DescribeRequest]) -> list[Description | Rejection]:
        """One description per request, decided by its labels and seed alone."""
        return [_describe(request) for request in requests]


def _describe(request: DescribeRequest) -> Description | Rejection:
    if not request.labels:
        return Rejection(reason="no-labels")
    if len(request.labels) > len(PLACES):
        return Rejection(reason="too-many-labels", detail=f"{len(request.labels)}, at most {len(PLACES)}")
    rng = Generator(Philox(request.seed))
    opening = _choose(rng, OPENINGS, request.labels) or ""
    scene = _choose(rng, SCENES, request.labels)
    light = _choose(rng, LIGHTS, request.labels)
    scene_first = bool(rng.random() < 0.5) and not opening
    objects = _objects(rng, request.labels)
    if scene is None:
        return Rejection(reason="no-scene", detail="every scene of the grammar names or shows one of the labels")
    when = f" {light.text}" if light else ""
    caption = f"{scene.text}{when}, {objects}" if scene_first else f"{opening}{objects}, {scene.text}{when}"
    bare = f"{opening}{article(EMPTY)} {EMPTY} {scene.word}{when}"
    return _checked(request.labels, _sentence(caption), _sentence(bare))


def _checked(labels: Sequence[Label], caption: str, counterfactual: str) -> Description | Rejection:
    """The description, if the caption names all labels and the counterfactual none."""
    for label in labels:
        if not mentions(caption, label):
            return Rejection(reason="label-not-named", detail=f"{label.name!r} in {caption!r}")
        if mentions(counterfactual, label):
            return Rejection(reason="counterfactual-names-label", detail=f"{label.name!r} in {counterfactual!r}")
    return Description(caption=caption, counterfactual=counterfactual, quality={"words": len(caption.split())})


def _objects(rng: Generator, labels: Sequence[Label]) -> str:
    """The labels with size, colour and place, joined by "and"; no two at one place."""
    places = [PLACES[number] for number in rng.permutation(len(PLACES))]
    phrases = []
    for label, place in zip(labels, places, strict=False):
        size, colour = _choose(rng, SIZES, labels), _choose(rng, COLOURS, labels)
        words = " ".join(word for word in (size, colour, label.text) if word)
        where = f" {place.text}" if _allowed((place,), labels) else ""
        phrases.append(f"{article(words)} {words}{where}" if takes_article(label.text) else words + where)
    return " and ".join(phrases)


def _choose(rng: Generator, choices: Sequence[_Choice], labels: Sequence[Label]) -> _Choice | None:
    """One of the choices that name no label, or None if all do. Draws from ``rng`` once in any case."""
    allowed = _allowed(choices, labels)
    draw = rng.random()
    return allowed[int(draw * len(allowed))] if allowed else None


def _allowed(choices: Sequence[_Choice], labels: Sequence[Label]) -> list[_Choice]:
    return [choice for choice in choices if not any(_brings(choice, label) for label in labels)]


def _brings(choice: str | Phrase, label: Label) -> bool:
    """Whether the choice names the label, or shows it unasked."""
    if isinstance(choice, str):
        return mentions(choice, label)
    return any(mentions(text, label) for text in (choice.text, *choice.shows))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
