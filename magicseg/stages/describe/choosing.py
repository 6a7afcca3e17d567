"""Random choices that bring no label, and the last check: what the grammar and the template share."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

from numpy.random import Generator

from magicseg.backends import Description, Rejection
from magicseg.labels import Label
from magicseg.labels.mentions import names


class Picturable(Protocol):
    """A choice with a picture: ``texts`` is what it says, and what a picture of it shows unasked."""

    @property
    def texts(self) -> tuple[str, ...]: ...


Choice = TypeVar("Choice", bound=str | Picturable)


def choose(rng: Generator, choices: Sequence[Choice], labels: Sequence[Label]) -> Choice | None:
    """One of the choices that bring no label, or None if all do. Draws from ``rng`` once in any case."""
    allowed = [choice for choice in choices if not brings(choice, labels)]
    draw = rng.random()
    return allowed[int(draw * len(allowed))] if allowed else None


def brings(choice: str | Picturable, labels: Sequence[Label]) -> bool:
    """Whether the choice names one of the labels, or shows it unasked."""
    texts = (choice,) if isinstance(choice, str) else choice.texts
    return any(names(text, label) for text in texts for label in labels)


def checked(labels: Sequence[Label], caption: str, counterfactual: str) -> Description | Rejection:
    """The description, if the caption names all labels and the counterfactual none."""
    for label in labels:
        if not names(caption, label):
            return Rejection(reason="label-not-named", detail=f"{label.name!r} in {caption!r}")
        if names(counterfactual, label):
            return Rejection(reason="counterfactual-names-label", detail=f"{label.name!r} in {counterfactual!r}")
    return Description(caption=caption, counterfactual=counterfactual, quality={"words": len(caption.split())})


def sentence(text: str) -> str:
    """The text with a capital at its beginning."""
    return text[:1].upper() + text[1:]
