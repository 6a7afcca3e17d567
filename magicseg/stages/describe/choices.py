"""Random choices that mention no label, and the final check of captions; shared by grammar and template."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from numpy.random import Generator

from magicseg.backends import Description, Rejection
from magicseg.labels import Label
from magicseg.labels.mentions import names


class SceneElement(Protocol):
    """An element of a scene. ``texts``: its words, and the things that an image of it usually shows."""

    @property
    def texts(self) -> tuple[str, ...]: ...


Choice = TypeVar("Choice", bound=str | SceneElement)


def choose(rng: Generator, choices: Sequence[Choice], labels: Sequence[Label]) -> Choice | None:
    """Draw one of the choices that neither name nor show a label; None if there is no such choice.

    ``rng`` is always advanced by exactly one draw.
    """
    allowed = [choice for choice in choices if not names_or_shows(choice, labels)]
    draw = rng.random()
    return allowed[int(draw * len(allowed))] if allowed else None


def names_or_shows(choice: str | SceneElement, labels: Sequence[Label]) -> bool:
    """Return whether a choice names one of the labels, or usually shows it."""
    texts = (choice,) if isinstance(choice, str) else choice.texts
    return any(names(text, label) for text in texts for label in labels)


def checked_description(labels: Sequence[Label], caption: str, counterfactual: str) -> Description | Rejection:
    """Return a description; a rejection if the caption lacks a label or the counterfactual names a label."""
    for label in labels:
        if not names(caption, label):
            return Rejection(reason="label-not-named", detail=f"{label.name!r} in {caption!r}")
        if names(counterfactual, label):
            return Rejection(reason="counterfactual-names-label", detail=f"{label.name!r} in {counterfactual!r}")
    return Description(caption=caption, counterfactual=counterfactual, quality={"words": len(caption.split())})


def sentence(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]
