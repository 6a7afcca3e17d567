"""An endless stream of painted scenes with captions, for training and evaluation of all models in this folder.

Scene ``index`` of a stream depends only on (seed, stream, index). Streams with different names share no scenes.
"""

import hashlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
from numpy.random import Generator, Philox
from numpy.typing import NDArray

from magicseg.backends import DescribeRequest, Description, Image
from magicseg.labels import Vocabulary, load_vocabulary
from magicseg.miniature.caption import SceneSpec, parse
from magicseg.miniature.painter import NOISE, paint
from magicseg.stages.describe.grammar import GrammarCaptioner
from magicseg.stages.generate.counterfactual_caption import replace_labels

SIZE = 64
OBJECTS = (0.2, 0.65, 0.15)  # fractions of scenes with 0, 1 and 2 objects

_MASK_64 = 2**64 - 1

Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A painted scene with its caption.

    ``image``: uint8 (size, size, 3). ``mask``: uint8 (size, size), 0 or the number of the noun in `nouns`, from 1.
    ``spec``: the parsed caption.
    """

    caption: str
    image: Image
    mask: NDArray[np.uint8]
    spec: SceneSpec


def counter_rng(seed: int, stream: str, index: int) -> Generator:
    """Return the random generator of one step or scene. The key has the stream's name, the counter has the index."""
    name = int.from_bytes(hashlib.sha256(f"magicseg/training/{stream}".encode()).digest()[:8], "little")
    return Generator(Philox(key=[seed & _MASK_64, name], counter=[0, 0, 0, index]))


@cache
def vocabulary() -> Vocabulary:
    """Return the labels that the painter can draw."""
    return load_vocabulary("miniature")


def nouns() -> tuple[str, ...]:
    """Return the names of `vocabulary`, in the order of their ids."""
    return vocabulary().names


def scene(
    index: int,
    *,
    seed: int,
    stream: str,
    objects: tuple[float, ...] = OBJECTS,
    size: int = SIZE,
    noise: float = NOISE,
) -> Scene:
    """Paint scene number ``index`` of a stream.

    A scene without objects has one of the two kinds of counterfactual text of the back end ``diffusers``: the
    grammar's text ("An empty beach at dawn"), or a caption with class words replaced by "nothing".

    Args: objects: fractions of scenes with 0, 1, 2... objects. noise: the painter's noise, standard deviation in
    units of 0 to 255.
    """
    rng = counter_rng(seed, stream, index)
    count = int(rng.choice(len(objects), p=objects))
    chosen = rng.choice(len(vocabulary()), size=max(count, 1), replace=False)
    labels = tuple(vocabulary().labels[int(number)] for number in chosen)
    caption_seed, paint_seed = (int(number) for number in rng.integers(0, 2**64, 2, dtype=np.uint64))
    rewritten = bool(rng.random() < 0.5)
    (description,) = GrammarCaptioner(None, GrammarCaptioner.Options()).describe(
        [DescribeRequest(index=index, labels=labels, seed=caption_seed)]
    )
    if not isinstance(description, Description):
        raise TypeError(f"no caption for {[label.name for label in labels]}: {description.reason}")
    if count:
        caption, spec = description.caption, parse(description.caption)
    else:
        spec = parse(description.counterfactual)
        replaced = replace_labels(description.caption, labels)
        caption = description.counterfactual if rewritten else replaced
    painted = paint(spec, seed=paint_seed, size=size, labels=vocabulary().labels, noise=noise)
    return Scene(caption=caption, image=painted.image, mask=painted.mask.astype(np.uint8), spec=spec)


def ahead(make: Callable[[int], Made], numbers: Sequence[int], workers: int) -> Iterator[Made]:
    """Yield ``make`` of each number in order, computed by ``workers`` processes, or by this process if 0."""
    if not workers or not numbers:
        yield from map(make, numbers)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(make, numbers, chunksize=32)
