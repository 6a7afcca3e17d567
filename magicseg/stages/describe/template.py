"""The captioner that costs nothing: scenes from templates, for every list of labels.

It is also what a language model's captioner falls back to. The miniature's `grammar` is another one: its captions
must stay within the words that the painter reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numpy.random import Generator, Philox
from pydantic import Field

from magicseg.backends import DescribeRequest, Description, Rejection
from magicseg.core.settings import Settings
from magicseg.labels import Label
from magicseg.labels.inflect import plural
from magicseg.stages.describe.choosing import brings, checked, choose, sentence
from magicseg.stages.describe.length import CLIP_TOKENS, count_tokens
from magicseg.stages.describe.naming import spoken, takes_article, with_article
from magicseg.stages.describe.scenery import (
    COUNTS,
    EMPTY,
    INDOOR_LIGHT,
    LOOKS,
    LOOKS_OF_PEOPLE,
    OPENINGS,
    OUTDOOR_LIGHT,
    PEOPLE,
    POSITIONS,
    SCENES,
    SIZES,
    VIEWS,
    Scene,
)

RECIPE = 2  # goes up whenever the same request gives another caption

_SHARE_OF_SEVERAL = 0.2


class TemplateCaptioner:
    """Back end of the describe stage: each choice is uniform among those that bring none of the labels."""

    class Options(Settings):
        """Captions are made plainer until they fit."""

        max_tokens: int = Field(CLIP_TOKENS, ge=8, le=4096, description="of the text encoder; estimated from above")

    @classmethod
    def identity(cls, options: "TemplateCaptioner.Options") -> Mapping[str, str | int]:
        """The recipe's number: captions change only with it."""
        return {"template": RECIPE}

    def __init__(self, settings: object, options: "TemplateCaptioner.Options") -> None:
        """Needs nothing of the stage's settings."""
        self._max_tokens = options.max_tokens

    def describe(self, requests: Sequence[DescribeRequest]) -> list[Description | Rejection]:
        """One description per request, decided by its labels and seed alone."""
        return [describe_by_template(request, self._max_tokens) for request in requests]


def describe_by_template(request: DescribeRequest, max_tokens: int) -> Description | Rejection:
    """A varied scene with the request's labels, and the same scene without them."""
    if not request.labels:
        return Rejection(reason="no-labels")
    setting = draw_setting(request.seed, request.labels)
    if setting is None:
        return Rejection(reason="no-scene", detail="every scene of the template names or shows one of the labels")
    objects = _draw_objects(request.seed, request.labels)
    for plain in (False, True):
        for bare_setting in (setting, setting.shorter()):
            positive, counterfactual = bare_setting.around(_joined([each.text(plain=plain) for each in objects]))
            if count_tokens(positive) <= max_tokens:
                return checked(request.labels, positive, counterfactual)
    return Rejection(reason="too-long", detail=f"{count_tokens(positive)} tokens, at most {max_tokens}: {positive!r}")


@dataclass(frozen=True)
class Setting:
    """Where, when and how a scene is seen."""

    scene: Scene
    opening: str = ""
    light: str = ""
    view: str = ""

    def shorter(self) -> "Setting":
        """The same place, with less to say about it."""
        return Setting(self.scene)

    def around(self, objects: str) -> tuple[str, str]:
        """The caption of the scene with the objects, and of the scene without."""
        rest = "".join([f" {self.light}" if self.light else "", f", {self.view}" if self.view else ""])
        return (
            sentence(f"{self.opening}{objects}, {self.scene.preposition} {with_article(self.scene.noun)}{rest}"),
            sentence(f"{self.opening}{with_article(f'{EMPTY} {self.scene.noun}')}{rest}"),
        )


def draw_setting(seed: int, labels: Sequence[Label]) -> Setting | None:
    """A setting that neither names nor shows a label; None where there is none."""
    rng = Generator(Philox(key=[seed, 1]))
    scene = choose(rng, SCENES, labels)
    if scene is None:
        return None
    return Setting(
        scene,
        opening=choose(rng, OPENINGS, labels) or "",
        light=choose(rng, OUTDOOR_LIGHT if scene.outdoors else INDOOR_LIGHT, labels) or "",
        view=(choose(rng, VIEWS, labels) or "") if rng.random() < 0.5 else "",
    )


@dataclass(frozen=True)
class _Object:
    name: str
    size: str
    look: str
    position: str
    count: str

    def text(self, *, plain: bool) -> str:
        """The object as it stands in the caption."""
        words = " ".join(filter(None, ["" if plain else self.size, "" if plain else self.look]))
        where = f" {self.position}" if self.position and not plain else ""
        if not takes_article(self.name):
            return f"{words} {self.name}".strip() + where
        if self.count:
            return " ".join(filter(None, [self.count, words, plural(self.name)])) + where
        return with_article(f"{words} {self.name}".strip()) + where


def _draw_objects(seed: int, labels: Sequence[Label]) -> list[_Object]:
    """Each label with its looks; no two at one position."""
    rng = Generator(Philox(key=[seed, 2]))
    positions = [POSITIONS[number] for number in rng.permutation(len(POSITIONS))]
    objects = []
    for place, label in enumerate(labels):
        looks = LOOKS_OF_PEOPLE if PEOPLE.intersection(label.forms) else LOOKS
        count = choose(rng, COUNTS, labels) or ""
        several, sized, looked, placed = rng.random(4)
        size, look = choose(rng, SIZES, labels) or "", choose(rng, looks, labels) or ""
        position = positions[place % len(positions)]
        objects.append(
            _Object(
                name=spoken(label),
                size=size if sized < 0.4 and looks is LOOKS else "",
                look=look if looked < 0.8 else "",
                position=position if placed < 0.7 and not brings(position, labels) else "",
                count=count if several < _SHARE_OF_SEVERAL else "",
            )
        )
    return objects


def _joined(phrases: Sequence[str]) -> str:
    """ "a cat", "a cat and a dog", "a cat, a dog and a cow"."""
    *most, last = phrases
    return f"{', '.join(most)} and {last}" if most else last
