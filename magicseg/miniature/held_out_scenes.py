"""Held-out scenes of the miniature: never among the training samples, with exact ground truth."""

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.random import Generator, Philox

from magicseg.backends import ClassMap, DescribeRequest, Description, Image
from magicseg.config.evaluation import MINIATURE, EvaluateSettings
from magicseg.core.errors import ConfigError
from magicseg.core.files import to_json
from magicseg.data.protocol import Background, Labels, Protocol
from magicseg.labels import Vocabulary
from magicseg.miniature.caption import NOUNS
from magicseg.miniature.painter import RECIPE, Painted, paint
from magicseg.stages.describe.grammar import GrammarCaptioner

_STREAM = int.from_bytes(hashlib.sha256(b"magicseg/miniature/heldout").digest()[:8], "little")
_MASK_64 = 2**64 - 1

OTHER_SCENES = 1 << 62
"""Added to a seed, it gives the seed of scenes that the held-out test never shows."""


def heldout_scene(index: int, *, vocabulary: Vocabulary, seed: int, max_objects: int, size: int) -> Painted:
    """Paint scene number ``index`` of the endless held-out set of ``seed``.

    Args: vocabulary: labels that the painter can draw. max_objects: a scene shows 1 to this many objects, of
    different labels. size: side in pixels.
    Returns: the image and the image without its objects, uint8 (size, size, 3); the exact class ids, uint16 (size,
        size).
    Raises: ConfigError if the painter cannot draw a label, or ``max_objects`` is out of range.
    """
    unknown = undrawn(vocabulary)
    if unknown:
        raise ConfigError(f"the painter has no drawing of {', '.join(map(repr, unknown[:5]))}")
    if not 1 <= max_objects <= min(3, len(vocabulary.labels)):
        raise ConfigError(f"max_objects must be 1 to {min(3, len(vocabulary.labels))}, got {max_objects}")
    # The stream's name is in the key and the index in the counter: no seed of another stream meets these.
    rng = Generator(Philox(key=[seed & _MASK_64, _STREAM], counter=[0, 0, 0, index]))
    count = int(rng.integers(1, max_objects + 1))
    chosen = rng.choice(len(vocabulary.labels), size=count, replace=False)
    labels = tuple(vocabulary.labels[int(number)] for number in chosen)
    caption_seed, paint_seed = (int(number) for number in rng.integers(0, 2**64, 2, dtype=np.uint64))
    captioner = GrammarCaptioner(None, GrammarCaptioner.Options())
    (description,) = captioner.describe([DescribeRequest(index=index, labels=labels, seed=caption_seed)])
    if not isinstance(description, Description):
        raise ConfigError(f"no caption for {[label.name for label in labels]}: {description.reason}")
    return paint(description.caption, seed=paint_seed, size=size, labels=labels)


def undrawn(vocabulary: Vocabulary) -> list[str]:
    """Return the names that the painter cannot draw. A vocabulary with such a name has no scenes."""
    return [name for name in vocabulary.names if name not in NOUNS]


@dataclass(frozen=True, kw_only=True)
class PaintedScenes:
    """The miniature's benchmark as a `magicseg.data.labelled_images.LabelledImages`; scenes are painted when read.

    ``size``: side of the scenes, pixels. ``batch``: scenes in one forward pass. ``threshold``: probability; a pixel
    whose best class scores less is background. ``split``: what results call the scenes.
    """

    vocabulary: Vocabulary = field(repr=False)
    seed: int
    size: int
    scenes: int
    max_objects: int
    batch: int
    threshold: float
    split: str = "scenes"

    has_counterfactuals: ClassVar[bool] = True

    @classmethod
    def of(cls, vocabulary: Vocabulary, settings: EvaluateSettings, *, seed: int, size: int) -> "PaintedScenes":
        """Take the number of scenes, their objects, the batch and the threshold from the settings."""
        return cls(
            vocabulary=vocabulary,
            seed=seed,
            size=size,
            scenes=settings.scenes,
            max_objects=settings.max_objects,
            batch=settings.batch_size,
            threshold=settings.threshold,
        )

    @cached_property
    def protocol(self) -> Protocol:
        """Background is a class by a threshold. Queries are the names alone; images are scored whole, unresized."""
        declared = Protocol(
            name=MINIATURE,
            vocabulary=self.vocabulary.name,
            split=self.split,
            images=("{name}",),
            labels_in=(Labels(path="{name}"),),
            background=Background(rule="threshold", threshold=self.threshold),
            short_side=None,
            window=None,
            origin="painted when read",
            source="magicseg.miniature.painter",
        )
        names_alone = tuple(replace(label, synonyms=()) for label in self.vocabulary.labels)
        return declared.for_labelled_folder(
            replace(self.vocabulary, labels=names_alone, background=("background",)), split=self.split
        )

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Seed and number of each scene, so that scenes of two seeds have different names."""
        return tuple(f"{self.seed}-{number}" for number in range(self.scenes))

    def others(self) -> "PaintedScenes":
        """Return as many scenes of another seed, to choose thresholds on."""
        return replace(self, seed=self.seed + OTHER_SCENES, split="scenes of another seed")

    def pair(self, name: str) -> tuple[Image, ClassMap]:
        """Paint a scene. Returns: the image and its class ids."""
        return self.with_counterfactual(name)[:2]

    def with_counterfactual(self, name: str) -> tuple[Image, ClassMap, Image]:
        """Paint a scene. Returns: the image, its class ids, and the image without its objects."""
        number = int(name.rpartition("-")[2])
        painted = heldout_scene(
            number, vocabulary=self.vocabulary, seed=self.seed, max_objects=self.max_objects, size=self.size
        )
        return painted.image, painted.mask, painted.empty

    def where(self, name: str) -> str:
        """Return the scene's seed and number in words."""
        return f"painted scene {name}"

    def digest(self) -> str:
        """Return the SHA-256 of everything that decides the scenes and their batches."""
        content = {
            "painter": RECIPE,
            "seed": self.seed,
            "size": self.size,
            "scenes": self.scenes,
            "max_objects": self.max_objects,
            "batch": self.batch,
            "vocabulary": self.vocabulary.digest(),
        }
        return hashlib.sha256(to_json(content)).hexdigest()

    def about(self) -> dict[str, str]:
        """Return nothing: the split says it all."""
        return {}
