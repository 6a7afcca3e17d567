"""Run a head over the images of a data set and count pixels: images are read ahead and counted behind the model."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from magicseg.data.labelled_images import LabelledImages
from magicseg.evaluate.committed_parts import cut, evenly
from magicseg.evaluate.decoding import ImageFailed, label_batch, threshold_of
from magicseg.evaluate.metrics.confusion import Confusion
from magicseg.evaluate.metrics.counts import ImageResult, count_image, tabulate
from magicseg.evaluate.metrics.intervals import ImageCounts
from magicseg.evaluate.threshold import Threshold

if TYPE_CHECKING:
    from magicseg.evaluate.heads.head import Head

READERS = 2

Progress = Callable[[int, int], None]
Loaded = tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint8] | None]
"""An image, its ground truth, and its counterfactual if it has one."""


@dataclass(frozen=True, eq=False)
class CountedImages:
    """Results of a part's images, in their order. ``content``: digests of image and ground truth."""

    results: list[ImageResult]
    content: list[str]
    seconds: float


class Runner:
    """Runs one head over a data set. ``failed``: why images could not be scored, once `run` is through.

    Args:
        threshold: by which the protocol's rule finds background, if it has one.
        readers: threads that read images and count pixels while the model works.
        attempt: entered with the first name of a batch while the batch is processed.
        progress: called with the number of finished images and of all images.
        stop: asked before every batch; True ends the run.
        counterfactuals: label the images' counterfactuals too, where the data set has them.
    """

    def __init__(
        self,
        head: "Head",
        data: LabelledImages,
        threshold: Threshold | None,
        *,
        readers: int = READERS,
        attempt: Callable[[str], AbstractContextManager[None]] = lambda name: nullcontext(),
        progress: Progress | None = None,
        stop: Callable[[], bool] | None = None,
        counterfactuals: bool = True,
    ) -> None:
        self.failed: list[ImageFailed] = []
        self.head, self.data, self.threshold = head, data, threshold
        self.readers = max(1, readers)
        self.attempt, self.progress, self.stop = attempt, progress, stop
        self.counterfactuals = counterfactuals and data.has_counterfactuals

    def run(self, parts: Mapping[int, Sequence[str]]) -> Iterator[tuple[int, CountedImages]]:
        """Yield the parts as they are finished; fewer if a stop was requested, or images failed."""
        import torch

        self.head.prepare(self.data.protocol.queries)
        with torch.inference_mode(), ThreadPoolExecutor(self.readers) as pool:
            yield from self._run(parts, pool)

    def _run(
        self, parts: Mapping[int, Sequence[str]], pool: ThreadPoolExecutor
    ) -> Iterator[tuple[int, CountedImages]]:
        total = sum(map(len, parts.values()))
        loaded = self._loaded([name for names in parts.values() for name in names], pool)
        done = 0
        for number, names in parts.items():
            began = time.perf_counter()
            counting: list[Future[tuple[ImageResult, str]]] = []
            for batch in cut(names, self.data.batch or 1):
                if self.stop is not None and self.stop():
                    loaded.close()
                    return
                try:
                    with self.attempt(batch[0]):
                        examples = [next(loaded) for _ in batch]
                        found = self._labelled([image for image, _, _ in examples], batch[0])
                        others = [other for _, _, other in examples if other is not None]
                        on_others = self._labelled(others, batch[0]) if others else [None] * len(examples)
                    for (image, truth, _), ids, without in zip(examples, found, on_others, strict=True):
                        counting.append(pool.submit(self._count, image, truth, ids, without))
                    if len(counting) > self.readers:
                        counting[-1 - self.readers].exception()  # wait: images that queue up need memory
                except ImageFailed as failure:
                    self.failed.append(failure)
                done += len(batch)
                if self.progress is not None:
                    self.progress(done, total)
            counted = [future.result() for future in counting]
            if len(counted) == len(names):
                results, content = [result for result, _ in counted], [digest for _, digest in counted]
                yield number, CountedImages(results, content, time.perf_counter() - began)

    def _labelled(self, images: Sequence[NDArray[np.uint8]], name: str) -> list[NDArray[np.uint16]]:
        return label_batch(self.head, images, self.data, self.threshold, self.data.where(name))

    def _load(self, name: str) -> Loaded:
        return self.data.with_counterfactual(name) if self.counterfactuals else (*self.data.pair(name), None)

    def _loaded(self, names: Sequence[str], pool: ThreadPoolExecutor) -> Generator[Loaded, None, None]:
        """Yield images and ground truths in order, read by the pool a few ahead."""
        waiting: deque[Future[Loaded]] = deque()
        try:
            for name in names:
                waiting.append(pool.submit(self._load, name))
                if len(waiting) > self.readers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _count(
        self,
        image: NDArray[np.uint8],
        truth: NDArray[np.uint16],
        ids: NDArray[np.uint16],
        counterfactual: NDArray[np.uint16] | None,
    ) -> tuple[ImageResult, str]:
        protocol = self.data.protocol
        result = count_image(
            truth,
            ids,
            len(protocol.classes),
            protocol.ignore_value,
            first=protocol.first_value,
            counterfactual=counterfactual,
        )
        return result, content_digest(image, truth)


def content_digest(image: NDArray[np.uint8], truth: NDArray[np.uint16]) -> str:
    """Return the SHA-256 of an image's size, pixels and ground truth."""
    digest = hashlib.sha256(np.array(image.shape, np.int64).tobytes())
    digest.update(image.tobytes())
    digest.update(truth.astype("<u2").tobytes())
    return digest.hexdigest()


def count_images(
    head: "Head",
    data: LabelledImages,
    *,
    threshold: Threshold | None = None,
    limit: int | None = None,
    counterfactuals: bool = True,
) -> tuple[Confusion, ImageCounts]:
    """Score a head in memory, without files: the summed confusion matrix, and the counts by image.

    Args: threshold, limit: as for `Scoring`. counterfactuals: as for `Runner`. Raises: ImageFailed, DataError.
    """
    runner = Runner(head, data, threshold_of(data.protocol, threshold), counterfactuals=counterfactuals)
    found = list(runner.run({0: evenly(data.names, limit)}))
    if runner.failed:
        raise runner.failed[0]
    ((_, images),) = found
    return tabulate(images.results, len(data.protocol.classes))
