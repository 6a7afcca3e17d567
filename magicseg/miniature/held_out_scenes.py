"""Held-out scenes of the miniature: never among the training samples, with exact ground truth."""

import hashlib

import numpy as np
from numpy.random import Generator, Philox

from magicseg.backends import ClassMap, DescribeRequest, Description, Image
from magicseg.core.errors import ConfigError
from magicseg.labels import Vocabulary
from magicseg.miniature.caption import NOUNS
from magicseg.miniature.painter import paint
from magicseg.stages.describe.grammar import GrammarCaptioner

_STREAM = int.from_bytes(hashlib.sha256(b"magicseg/miniature/heldout").digest()[:8], "little")
_MASK_64 = 2**64 - 1


def heldout_scene(
    index: int, *, vocabulary: Vocabulary, seed: int, max_objects: int, size: int
) -> tuple[Image, ClassMap]:
    """Scene number ``index`` of the endless held-out set of ``seed``.

    Args: vocabulary: labels that the painter can draw. max_objects: a scene shows 1 to this many objects, of
    different labels. size: side in pixels.
    Returns: the image, uint8 (size, size, 3), and the exact class ids, uint16 (size, size).
    Raises: ConfigError.
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
    painted = paint(description.caption, seed=paint_seed, size=size, labels=labels)
    return painted.image, painted.mask


def undrawn(vocabulary: Vocabulary) -> list[str]:
    """The names that the painter cannot draw: with one of them there are no scenes."""
    return [name for name in vocabulary.names if name not in NOUNS]
