"""Parse captions of the grammar: objects with their looks and places, scene, and light."""

import re
from dataclasses import dataclass

from magicseg.stages.describe.words import COLOURS, FILLERS, LIGHTS, PLACES, SCENES, SIZES

NOUNS = ("car", "house", "tree", "boat", "umbrella", "fish", "flower", "mushroom", "kite", "cup")

_PLACES = frozenset(place.word for place in PLACES)
_SCENES = frozenset(scene.word for scene in SCENES)
_LIGHTS = frozenset(light.word for light in LIGHTS)
_WORD = re.compile(r"[^\s,.]+")


class UnreadableCaption(ValueError):
    """A caption contains an unknown word, or lacks a required word."""


@dataclass(frozen=True, kw_only=True)
class ObjectSpec:
    """One object of a caption. Attributes that are None are chosen at random."""

    noun: str
    colour: str | None = None
    size: str | None = None
    place: str | None = None


@dataclass(frozen=True, kw_only=True)
class SceneSpec:
    """A parsed caption. Objects are painted in this order; the last is in front."""

    scene: str
    light: str | None = None
    objects: tuple[ObjectSpec, ...] = ()


def parse(caption: str) -> SceneSpec:
    """Parse a caption of the grammar, in upper or lower case.

    Raises: UnreadableCaption that names the offending word.
    """
    slots: dict[str, str] = {}  # of the whole scene
    looks: dict[str, str] = {}  # adjectives of the next noun
    objects: list[dict[str, str]] = []

    def fill(slot: str, word: str, of: dict[str, str]) -> None:
        if slot in of:
            raise UnreadableCaption(f"two {slot}s, {of[slot]!r} and {word!r}, in {caption!r}")
        of[slot] = word

    for word in _WORD.findall(caption.lower()):
        if word in COLOURS:
            fill("colour", word, looks)
        elif word in SIZES:
            fill("size", word, looks)
        elif word in NOUNS:
            objects.append({"noun": word, **looks})
            looks = {}
        elif word in _PLACES:
            if not objects:
                raise UnreadableCaption(f"{word!r} comes before any object in {caption!r}")
            fill("place", word, objects[-1])
        elif word in _SCENES:
            fill("scene", word, slots)
        elif word in _LIGHTS:
            fill("light", word, slots)
        elif word not in FILLERS:
            raise UnreadableCaption(f"unknown word {word!r} in {caption!r}")
    if looks:
        raise UnreadableCaption(f"{' '.join(looks.values())!r} belongs to no object in {caption!r}")
    if "scene" not in slots:
        raise UnreadableCaption(f"no scene in {caption!r}; known: {', '.join(sorted(_SCENES))}")
    return SceneSpec(
        scene=slots["scene"],
        light=slots.get("light"),
        objects=tuple(
            ObjectSpec(
                noun=found["noun"],
                colour=found.get("colour"),
                size=found.get("size"),
                place=found.get("place"),
            )
            for found in objects
        ),
    )
