"""Training samples that the miniature's painter paints in memory, in sets with a known fault, and held-out scenes.

    data = PairSet(one_scene=True)                    # each class appears in one scene only
    samples = data.samples(seed=0)                    # magicseg.data.dataset.Samples, masks are exact
    scenes = data.held_out(settings, seed=0)          # one or two objects in any scene

A training sample shows one object. Its counterfactual is the same scene without the object: same backdrop, light and
noise. All choices are uniform, as in captions of the grammar, and belong to (seed, sample).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray

from magicseg.backends import ClassMap, Image
from magicseg.config.evaluation import EvaluateSettings
from magicseg.data.kept_samples import Images, Masks
from magicseg.labels import BACKGROUND, Label, Vocabulary
from magicseg.labels.vocabulary_files import load_vocabulary
from magicseg.miniature.caption import NOUNS, ObjectSpec, SceneSpec
from magicseg.miniature.held_out_scenes import PaintedScenes
from magicseg.miniature.painter import Painted, paint
from magicseg.stages.describe.words import COLOURS, LIGHTS, PLACES, SCENES, SIZES

RECIPE = 1  # incremented whenever the images or masks of the same set and seed change

SIZE = 64  # side of the images, pixels
_SAMPLES, _CLASSES, _SCENES, _WRONG, _HELD_OUT = range(5)  # streams of random numbers
_NOUNS = tuple(Label(id=number, name=noun) for number, noun in enumerate(NOUNS, start=1))


@dataclass(frozen=True)
class PaintedPairs:
    """Samples in memory, a `magicseg.data.dataset.Samples`. ``classes``: each sample's label id."""

    images: NDArray[np.uint8] = field(repr=False)
    counterfactuals: NDArray[np.uint8] = field(repr=False)
    masks: NDArray[np.uint16] = field(repr=False)
    classes: NDArray[np.uint16] = field(repr=False)
    validated: bool = True
    shard_size: int = 32
    image_size: int = SIZE
    allowed: ClassVar[None] = None

    @property
    def indices(self) -> NDArray[np.int64]:
        """All samples."""
        return np.arange(len(self.images))

    def labels(self) -> NDArray[np.uint16]:
        """Return each sample's label id, (samples, 1)."""
        return self.classes[:, None]

    def read(self, indices: NDArray[np.int64]) -> tuple[Images, Images, Masks]:
        """Return images, counterfactuals and masks in the order of ``indices``."""
        return self.images[indices], self.counterfactuals[indices], self.masks[indices]


@dataclass(frozen=True, kw_only=True)
class PairSet:
    """A set of pairs, and its faults.

    ``count``: training samples. ``one_scene``: each class appears in one scene only, drawn from the seed.
    ``wrong``: share of the samples whose counterfactual belongs to another sample: in turn that sample's
    counterfactual (another scene) and its image (another object). Pairs count as validated if the share is 0.
    ``aligned``: if False, the counterfactual has the same scene and light, but backdrop and noise of its own.
    ``colours``: a class is a noun in one of these colours ("red car"); empty: a class is a noun, in any colour.
    """

    count: int = 384
    one_scene: bool = False
    wrong: float = 0.0
    aligned: bool = True
    colours: tuple[str, ...] = ()

    @property
    def vocabulary(self) -> Vocabulary:
        """The classes: the miniature's ten nouns, or each of them in each colour."""
        if not self.colours:
            return load_vocabulary("miniature")
        names = [f"{colour} {noun}" for noun in NOUNS for colour in self.colours]
        labels = tuple(Label(id=number, name=name) for number, name in enumerate(names, start=1))
        return Vocabulary(name="coloured objects", labels=labels)

    def samples(self, seed: int) -> PaintedPairs:
        """Paint the training samples of a seed."""
        labels, scenes = self._labels(seed), self._scenes(seed)
        painted, others = [], []
        for number, label in enumerate(labels):
            rng = _random(seed, _SAMPLES, number)
            spec = _scene([label], rng, scenes.get(label.id))
            painted.append(_paint(spec, rng))
            others.append(painted[-1] if self.aligned else _paint(spec, rng))
        images = np.stack([each.image for each in painted])
        counterfactuals = np.stack([each.empty for each in others])
        if self.wrong:
            counterfactuals = _exchanged(images, counterfactuals, self.wrong, _random(seed, _WRONG, 0))
        masks = np.stack([_class_map(each, [label]) for each, label in zip(painted, labels, strict=True)])
        classes = np.array([label.id for label in labels], np.uint16)
        return PaintedPairs(images, counterfactuals, masks, classes, validated=self.wrong == 0)

    def held_out(self, settings: EvaluateSettings, *, seed: int) -> PaintedScenes:
        """Return the scenes that a seed's models are scored on. Those of the ten nouns are the miniature's own."""
        kind = ColouredScenes if self.colours else PaintedScenes
        return kind.of(self.vocabulary, settings, seed=seed, size=SIZE)

    def _labels(self, seed: int) -> list[Label]:
        """Return the samples' labels: every class once in a random order, then again."""
        known = self.vocabulary.labels
        turns = range(-(-self.count // len(known)))
        orders = [_random(seed, _CLASSES, turn).permutation(len(known)) for turn in turns]
        return [known[number] for number in np.concatenate(orders)[: self.count]]

    def _scenes(self, seed: int) -> dict[int, str]:
        """Return the only scene of each label id; empty if classes appear in all scenes."""
        if not self.one_scene:
            return {}
        order = _random(seed, _SCENES, 0).permutation(len(SCENES))
        return {label.id: SCENES[order[label.id % len(SCENES)]].word for label in self.vocabulary.labels}


class ColouredScenes(PaintedScenes):
    """Held-out scenes for a vocabulary of nouns with colours. No scene shows a noun twice."""

    def with_counterfactual(self, name: str) -> tuple[Image, ClassMap, Image]:
        """Paint a scene, its class map, and the scene without its objects."""
        rng = _random(self.seed, _HELD_OUT, int(name.rpartition("-")[2]))
        nouns = rng.choice(len(NOUNS), size=int(rng.integers(1, self.max_objects + 1)), replace=False)
        tones = len(self.vocabulary) // len(NOUNS)
        labels = [self.vocabulary.labels[noun * tones + int(rng.integers(tones))] for noun in nouns.tolist()]
        painted = _paint(_scene(labels, rng, None), rng)
        return painted.image, _class_map(painted, labels), painted.empty


def _random(seed: int, stream: int, number: int) -> Generator:
    return Generator(Philox(key=[seed, stream], counter=[0, 0, 0, number]))


def _scene(labels: list[Label], rng: Generator, scene: str | None) -> SceneSpec:
    """Choose scene (unless it is given), light, colours, sizes and places. No two objects share a place."""
    scenes, lights = ([each.word for each in phrases] for phrases in (SCENES, LIGHTS))
    places = rng.permutation([place.word for place in PLACES]).tolist()
    objects = []
    for label, place in zip(labels, places, strict=False):
        *colour, noun = label.name.split()
        drawn, size = str(rng.choice(COLOURS)), str(rng.choice(SIZES))
        objects.append(ObjectSpec(noun=noun, colour=colour[0] if colour else drawn, size=size, place=place))
    drawn = str(rng.choice(scenes))
    return SceneSpec(scene=scene or drawn, light=str(rng.choice(lights)), objects=tuple(objects))


def _paint(spec: SceneSpec, rng: Generator) -> Painted:
    return paint(spec, seed=int(rng.integers(2**63)), size=SIZE, labels=_NOUNS)


def _class_map(painted: Painted, labels: list[Label]) -> ClassMap:
    """Return the exact class map with the ids of these labels instead of their nouns'."""
    ids = np.full(len(NOUNS) + 1, BACKGROUND, np.uint16)
    for label in labels:
        ids[1 + NOUNS.index(label.name.split()[-1])] = label.id
    return ids[painted.mask]


def _exchanged(
    images: NDArray[np.uint8], counterfactuals: NDArray[np.uint8], share: float, rng: Generator
) -> NDArray[np.uint8]:
    """Return the counterfactuals with a share of them taken from other samples, see `PairSet`."""
    chosen = rng.permutation(len(images))[: round(share * len(images))]
    others = np.roll(chosen, 1)
    result = counterfactuals.copy()
    result[chosen[::2]] = counterfactuals[others[::2]]
    result[chosen[1::2]] = images[others[1::2]]
    return result
