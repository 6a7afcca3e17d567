"""From a head's logits to class numbers, by a benchmark's rule for background."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from magicseg.core.errors import ConfigError, DataError, IncompleteError
from magicseg.data.labelled_images import LabelledImages
from magicseg.data.protocol import Protocol
from magicseg.evaluate.threshold import Threshold
from magicseg.labels import BACKGROUND
from magicseg.model.sliding_window import logit_stripes

if TYPE_CHECKING:
    from torch import Tensor

    from magicseg.evaluate.heads.head import Head

WINDOWS_AT_ONCE = 4
"""Windows of one image in one forward pass. It decides the last bits of float arithmetic, so it is no option."""


def threshold_of(protocol: Protocol, given: Threshold | None) -> Threshold | None:
    """Return the given threshold, else the protocol's; None if its rule for background has no threshold."""
    if protocol.background.rule != "threshold":
        return None
    return given or Threshold(value=protocol.background.threshold, origin="default")


class ImageFailed(IncompleteError):
    """An image cannot be scored: it does not fit in memory, or an earlier process died while processing it."""


@contextlib.contextmanager
def memory_errors(head: "Head", size: tuple[int, ...], protocol: Protocol, name: str) -> Iterator[None]:
    """Convert out-of-memory errors to an `ImageFailed` that names the image. Args: size: the image's shape."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        from magicseg.core.devices import first_line, free_cached_memory, is_out_of_memory

        if not is_out_of_memory(error):
            raise
        free_cached_memory()
        raise ImageFailed(
            f"{name}: {size[1]} x {size[0]} pixels with {len(protocol.queries)} labels do not fit into memory "
            f"({head.name}: {first_line(error)})",
            hint="evaluate on a machine with more memory, or with a protocol file that has a smaller window",
        ) from error


def label_image(
    head: "Head", image: NDArray[np.uint8], protocol: Protocol, threshold: Threshold | None, name: str
) -> NDArray[np.uint16]:
    """Return the class number of every pixel of an image, uint16 (H, W). See `image_logits` and `class_numbers`."""
    with memory_errors(head, image.shape, protocol, name):
        stripes = image_logits(head, image, protocol, name)
        return np.concatenate([class_numbers(head, logits, protocol, threshold) for _, logits in stripes])


def image_logits(
    head: "Head", image: NDArray[np.uint8], protocol: Protocol, name: str
) -> Iterator[tuple[slice, "Tensor"]]:
    """Yield the logits of all queries by the protocol's resize and window, some rows of the image at a time.

    ``head.prepare(protocol.queries)`` comes first.

    Yields: the rows, and their logits, float32 (Q, rows, W).
    Raises: DataError, naming the image, if its scores are not finite.
    """
    from magicseg.model.finite_check import NotFiniteError

    try:
        yield from logit_stripes(
            head.logits,
            image,
            short_side=protocol.short_side,
            long_side=protocol.long_side,
            window=protocol.window,
            stride_px=protocol.stride,
            batch_size=WINDOWS_AT_ONCE,
            multiple=head.stride,
            average=head.window_average,
        )
    except NotFiniteError as error:
        raise DataError(f"{name}: the scores of {head.name} are not finite", hint=error.hint) from error


def batch_logits(
    head: "Head", images: Sequence[NDArray[np.uint8]], data: LabelledImages, name: str
) -> Iterator[tuple[slice, "Tensor"]]:
    """Yield the logits of images that go through the model together, some rows at a time.

    A data set without ``batch`` gives one image at a time, in sliding windows (`image_logits`). Otherwise the images
    are stacked, and each is one window.

    Args: images: uint8 (H, W, 3), of one size. name: of the first image, for messages.
    Yields: the rows, and their logits, float32 (B, Q, rows, W).
    """
    import torch

    from magicseg.model.decoder import upsample_logits

    if data.batch is None:
        (image,) = images
        for rows, logits in image_logits(head, image, data.protocol, name):
            yield rows, logits.unsqueeze(0)
    else:
        stacked = np.stack(images)
        logits = head.logits(torch.from_numpy(stacked).permute(0, 3, 1, 2))
        yield slice(None), upsample_logits(logits, (stacked.shape[1], stacked.shape[2]))


def label_batch(
    head: "Head",
    images: Sequence[NDArray[np.uint8]],
    data: LabelledImages,
    threshold: Threshold | None,
    name: str,
) -> list[NDArray[np.uint16]]:
    """Return the class ids of every image's pixels, uint16 (H, W) each. See `batch_logits` and `class_numbers`.

    Raises ImageFailed if the images do not fit in memory.
    """
    with memory_errors(head, images[0].shape, data.protocol, name):
        stripes = [
            class_numbers(head, logits, data.protocol, threshold)
            for _, logits in batch_logits(head, images, data, name)
        ]
        return list(np.concatenate(stripes, axis=1))


def above(head: "Head", logits: "Tensor", chosen: "Tensor", threshold: Threshold) -> "Tensor":
    """Return which pixels' chosen classes reach the threshold, bool (..., H, W).

    Args: logits: (..., K, H, W). chosen: indices of classes, int64 (..., H, W).
    Raises: ConfigError if the head has no score of the threshold's kind.
    """
    kind, value = threshold.cut
    if threshold.score != "probability" and kind not in head.score_kinds:
        raise ConfigError(f"the threshold applies to the score {kind!r}, which {head.name} does not have")
    return head.score(logits, chosen, kind) >= float(np.float32(value))


def class_numbers(
    head: "Head", logits: "Tensor", protocol: Protocol, threshold: Threshold | None
) -> NDArray[np.uint16]:
    """Return the id of every pixel's class, uint16 (..., H, W); BACKGROUND by the protocol's rule.

    Args: logits: float (..., Q, H, W).
    """
    import torch

    place = logits.argmax(dim=-3)
    labels = len(protocol.labels)
    numbers = torch.where(place < labels, place + 1, BACKGROUND)
    if threshold is not None:
        numbers[~above(head, logits, place, threshold)] = BACKGROUND
    return numbers.to(torch.int32).cpu().numpy().astype(np.uint16)
