"""The captioner without a model: scenes from templates, for all label lists.

The captioners with a language model fall back to it. The miniature uses `grammar` instead, whose captions contain
only words that the painter can parse.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from numpy.random import Generator, Philox
from pydantic import Field

from magicseg.backends import DescribeRequest, Description, Rejection
from magicseg.core.settings import Settings
from magicseg.labels import Label
from magicseg.labels.inflect import plural
from magicseg.stages.describe.choices import checked_description, choose, names_or_shows, sentence
from magicseg.stages.describe.naming import caption_name, takes_article, with_article
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
from magicseg.stages.describe.token_count import CLIP_TOKENS, count_tokens

RECIPE = 2  # incremented whenever the captions of the same requests change

_SHARE_OF_SEVERAL = 0.2


class TemplateCaptioner:
    """Back end of the describe stage. Each choice is uniform among the choices that neither name nor show a label."""

    class Options(Settings):
        """The length limit. Captions are simplified until they fit."""

        max_tokens: int = Field(
            CLIP_TOKENS, ge=8, le=4096, description="limit of the text encoder; an upper estimate"
        )

    @classmethod
    def identity(cls, options: "TemplateCaptioner.Options") -> Mapping[str, str | int]:
        """Return the recipe's number. Captions change only with it."""
        return {"template": RECIPE}

    def __init__(self, settings: object, options: "TemplateCaptioner.Options") -> None:
        """Ignore the stage's settings."""
        self._max_tokens = options.max_tokens

    def describe(self, requests: Sequence[DescribeRequest]) -> list[Description | Rejection]:
        """Return one description per request. It depends only on the request's labels and seed."""
        return [describe_by_template(request, self._max_tokens) for request in requests]


def describe_by_template(request: DescribeRequest, max_tokens: int) -> Description | Rejection:
    """Describe a varied scene with the request's labels, and the same scene without them."""
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
                return checked_description(request.labels, positive, counterfactual)
    return Rejection(reason="too-long", detail=f"{count_tokens(positive)} tokens, at most {max_tokens}: {positive!r}")


@dataclass(frozen=True)
class Setting:
    """The place, the light and the view of a scene."""

    scene: Scene
    opening: str = ""
    light: str = ""
    view: str = ""

    def shorter(self) -> "Setting":
        """Return the same place without opening, light and view."""
        return Setting(self.scene)

    def around(self, objects: str) -> tuple[str, str]:
        """Return the captions of the scene with the objects and without them."""
        rest = "".join([f" {self.light}" if self.light else "", f", {self.view}" if self.view else ""])
        return (
            sentence(f"{self.opening}{objects}, {self.scene.preposition} {with_article(self.scene.noun)}{rest}"),
            sentence(f"{self.opening}{with_article(f'{EMPTY} {self.scene.noun}')}{rest}"),
        )


def draw_setting(seed: int, labels: Sequence[Label]) -> Setting | None:
    """Draw a setting that neither names nor shows a label; return None if there is no such setting."""
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
        """Return the object's phrase in the caption. ``plain``: without size, look and position."""
        words = " ".join(filter(None, ["" if plain else self.size, "" if plain else self.look]))
        where = f" {self.position}" if self.position and not plain else ""
        if not takes_article(self.name):
            return f"{words} {self.name}".strip() + where
        if self.count:
            return " ".join(filter(None, [self.count, words, plural(self.name)])) + where
        return with_article(f"{words} {self.name}".strip()) + where


def _draw_objects(seed: int, labels: Sequence[Label]) -> list[_Object]:
    """Draw the looks and the position of each label."""
    rng = Generator(Philox(key=[seed, 2]))
    positions = [POSITIONS[number] for number in rng.permutation(len(POSITIONS))]
    objects = []
    for index, label in enumerate(labels):
        looks = LOOKS_OF_PEOPLE if PEOPLE.intersection(label.forms) else LOOKS
        count = choose(rng, COUNTS, labels) or ""
        several, sized, looked, placed = rng.random(4)
        size, look = choose(rng, SIZES, labels) or "", choose(rng, looks, labels) or ""
        position = positions[index % len(positions)]
        objects.append(
            _Object(
                name=caption_name(label),
                size=size if sized < 0.4 and looks is LOOKS else "",
                look=look if looked < 0.8 else "",
                position=position if placed < 0.7 and not names_or_shows(position, labels) else "",
                count=count if several < _SHARE_OF_SEVERAL else "",
            )
        )
    return objects


def _joined(phrases: Sequence[str]) -> str:
    """Join phrases: "a cat", "a cat and a dog", "a cat, a dog and a cow"."""
    *most, last = phrases
    return f"{', '.join(most)} and {last}" if most else last
