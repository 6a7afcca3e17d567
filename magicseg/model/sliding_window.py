"""Sliding-window inference: resize, overlapping windows, their average, the image's own size.

    for rows, logits in logit_stripes(head.logits, image, short_side=512, window=512, stride_px=426, batch_size=4,
                                      multiple=head.stride):
        labels[rows] = logits.argmax(dim=0)

The rules are those of mmsegmentation 1.x, with which published numbers are computed: its ``Resize`` with
``scale=(2048, 512), keep_ratio=True``, its ``slide_inference``, and its bilinear resize of the logits (not of the
label map) back to the image's own size.

Logits at full size are computed for a stripe of rows at a time, so memory depends on the labels and the window, not
on the size of the image.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from magicseg.model.finite_check import refuse_scores_not_finite

LONG_SIDE = 2048

WHOLE_VALUES = 1 << 26
"""Largest number of logits (labels x pixels) for which all rows are computed at once, float32: 256 MiB."""

STRIPE_VALUES = 1 << 24
"""Logits in a stripe of a larger image, float32: 64 MiB."""

WindowAverage = Literal["logits", "probabilities"]
"""What the windows of an image average, and what is resized to its own size.

"probabilities": the sigmoids of the logits, as in the paper's release. They are returned as log-odds.
"""

_LEAST, _MOST = 1e-30, 1 - 2.0**-24  # of a probability, so that its log-odds are finite in float32

_SMALL_WINDOW = 1 << 20  # a window with fewer logits is interpolated whole again for the next stripe

HeadLogits = Callable[[Tensor], Tensor]
"""Crops uint8 (B, 3, h, w) on the CPU to logits float (B, K, rows, columns), on any device: by pixel, or on a coarser
grid, which is brought to (h, w) by bilinear interpolation.
"""


def logit_stripes(
    head_logits: HeadLogits,
    image: NDArray[np.uint8],
    *,
    short_side: int | None,
    window: int | None,
    stride_px: int,
    batch_size: int,
    multiple: int,
    long_side: int = LONG_SIDE,
    average: WindowAverage = "logits",
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the logits of an image, some rows at a time, from the top to the bottom.

    The image is resized (`resized_size`), padded (`padded_size`) and cut into windows (`window_places`). A pixel's
    logit is the mean over the windows that hold it (`WindowAverage`). Batches hold windows of this one image, in a
    fixed order, so the bits do not depend on other images, their order or the process.

    An image with at most `WHOLE_VALUES` logits is one stripe. Stripes of a larger one have about `STRIPE_VALUES`
    logits, and differ from the whole by rounding at most: see `bilinear_rows`.

    Args:
        image: uint8 (H, W, 3), RGB.
        short_side: pixels of the shorter side after resizing, if ``long_side`` allows; None: do not resize.
        window: side of the windows, pixels, a multiple of ``multiple``; None: the whole image at once.
        stride_px: pixels from one window to the next; the last window is moved back to the border.
        batch_size: windows per batch. It affects the last bits of float arithmetic.
        multiple: sides of what ``head_logits`` gets are multiples of this.
        long_side: the longer side's limit after resizing, pixels.
        average: what the windows average. A mean of probabilities has no log-odds above 16.6, because float32 has no
            number between 1 - 2^-24 and 1.

    Yields: the rows, and their logits, float32 (K, rows, W), on the device of what ``head_logits`` returns.
    Raises: ValueError if the window is not a multiple, or the stride is below 1 or above the window.
    """
    if window is not None and window % multiple:
        nearest = max(multiple, round(window / multiple) * multiple)
        raise ValueError(f"a window of {window} pixels is not a multiple of {multiple}; {nearest} is")
    if window is not None and not 1 <= stride_px <= window:
        raise ValueError(f"windows of {window} pixels need a stride from 1 to {window}, not {stride_px}")
    own_size = (image.shape[0], image.shape[1])
    size = resized_size(own_size, short_side=short_side, long_side=long_side)
    pixels = _resize(image, size)
    padded = padded_size(size, window=window, multiple=multiple)
    # Repeating the border's pixels adds no edge that a model could take for an object.
    rows = torch.arange(padded[0]).clamp_(max=size[0] - 1)
    columns = torch.arange(padded[1]).clamp_(max=size[1] - 1)
    if padded != size:
        pixels = pixels[:, rows][:, :, columns]
    shape = (min(padded[0], window or padded[0]), min(padded[1], window or padded[1]))
    places = list(window_places(padded, shape, stride_px))
    windows = _Windows(head_logits, pixels, places, shape, batch_size, average)

    widest = max(own_size[1], padded[1])
    whole = windows.classes * max(own_size[0], padded[0]) * widest <= WHOLE_VALUES
    step = own_size[0] if whole else max(1, STRIPE_VALUES // (windows.classes * widest))
    for top in range(0, own_size[0], step):
        bottom = min(top + step, own_size[0])
        if size == own_size:
            yield slice(top, bottom), _as_logits(windows.mean(top, bottom, whole=whole)[:, :, : size[1]], average)
            continue
        first, last = (0, size[0]) if whole else _rows_needed(size[0], own_size[0], top, bottom)
        mean = windows.mean(first, last, whole=whole)[:, :, : size[1]]
        own = _bilinear(mean, own_size) if whole else _between_rows(mean, size[0], own_size, top, bottom)
        yield slice(top, bottom), _as_logits(own, average)


class _Windows:
    """The windows of one image. Each is computed when its rows are needed, and freed after its last row."""

    def __init__(
        self,
        head_logits: HeadLogits,
        pixels: Tensor,
        places: Sequence[tuple[int, int]],
        shape: tuple[int, int],
        batch_size: int,
        average: WindowAverage,
    ) -> None:
        self._head_logits, self._pixels, self._places = head_logits, pixels, places
        self._shape, self._batch_size, self._average = shape, batch_size, average
        self._started = 0
        self._made: deque[tuple[int, int, Tensor]] = deque()
        self._next_batch()
        self.classes = len(self._made[0][2])

    def mean(self, top: int, bottom: int, *, whole: bool) -> Tensor:
        """Return the mean over the windows, of logits or probabilities, float32 (K, bottom - top, W).

        ``top`` must not go back.
        """
        height, width = self._shape
        while self._started < len(self._places) and self._places[self._started][0] < bottom:
            self._next_batch()
        while self._made[0][0] + height <= top:
            self._made.popleft()
        across = self._pixels.shape[-1]
        total = self._made[0][2].new_zeros((self.classes, bottom - top, across))
        counts = torch.zeros(bottom - top, across)
        whole = whole or self.classes * height * width <= _SMALL_WINDOW
        for y, x, logits in self._made:
            if y >= bottom:
                break
            low, high = max(top, y), min(bottom, y + height)
            part = bilinear_rows(logits, self._shape, low - y, high - y, whole=whole)
            if self._average == "probabilities":
                part = part.sigmoid()
            total[:, low - top : high - top, x : x + width] += part
            counts[low - top : high - top, x : x + width] += 1
        return total.div_(counts.to(total.device))

    def _next_batch(self) -> None:
        height, width = self._shape
        batch = self._places[self._started : self._started + self._batch_size]
        crops = torch.stack([self._pixels[:, y : y + height, x : x + width] for y, x in batch])
        made = self._head_logits(crops).float()
        refuse_scores_not_finite(made)
        for (y, x), logits in zip(batch, made, strict=True):
            self._made.append((y, x, logits))
        self._started += len(batch)


def bilinear_rows(values: Tensor, size: tuple[int, int], top: int, bottom: int, *, whole: bool) -> Tensor:
    """Return some rows of values (K, h, w) brought to ``size`` by bilinear interpolation: (K, bottom - top, W).

    Args: whole: interpolate all rows by ``F.interpolate`` and cut these out. Otherwise only these are made, by the
    same formula, in the order of operations of torch's CPU kernel; the last bits may differ.
    """
    if tuple(values.shape[1:]) == size:
        return values[:, top:bottom]
    if whole:
        return _bilinear(values, size)[:, top:bottom]
    first, last = _rows_needed(values.shape[1], size[0], top, bottom)
    return _between_rows(values[:, first:last], values.shape[1], size, top, bottom)


def _between_rows(values: Tensor, height: int, size: tuple[int, int], top: int, bottom: int) -> Tensor:
    """Interpolate rows ``top`` to ``bottom`` of ``size`` from the rows of `_rows_needed`, of ``height`` in all."""
    upper, lower, weight = _row_weights(height, size[0], top, bottom)
    first = int(upper[0])
    upper, lower = (rows.sub(first).to(values.device) for rows in (upper, lower))
    weight = weight.to(values.device)[:, None]
    wide = _bilinear(values, (values.shape[1], size[1]))
    return (wide[:, lower] * weight).addcmul_(wide[:, upper], 1 - weight)


def _rows_needed(height: int, new_height: int, top: int, bottom: int) -> tuple[int, int]:
    """Return the range of rows, of ``height``, between which the rows ``top`` to ``bottom`` of ``new_height`` lie."""
    upper, lower, _ = _row_weights(height, new_height, top, bottom)
    return int(upper[0]), int(lower[-1]) + 1


def _row_weights(height: int, new_height: int, top: int, bottom: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return each new row's upper and lower neighbour, int64, and the lower one's weight, float32.

    The weights are rounded as torch's CPU kernel rounds them: the scale to float32, the centre once.
    """
    scale = np.float64(np.float32(height) / np.float32(new_height))
    centre = np.maximum(((np.arange(top, bottom) + 0.5) * scale - 0.5).astype(np.float32), 0)
    upper = np.minimum(centre.astype(np.int64), height - 1)
    lower = np.minimum(upper + 1, height - 1)
    weight = np.clip(centre - upper.astype(np.float32), 0, 1)
    return torch.from_numpy(upper), torch.from_numpy(lower), torch.from_numpy(weight)


def _as_logits(mean: Tensor, average: WindowAverage) -> Tensor:
    return mean if average == "logits" else torch.logit(mean.clamp(_LEAST, _MOST))


def _bilinear(values: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(values[None], size=size, mode="bilinear", align_corners=False)[0]


def resized_size(size: tuple[int, int], *, short_side: int | None, long_side: int = LONG_SIDE) -> tuple[int, int]:
    """Return the size with the shorter side at ``short_side``, or the longer at ``long_side`` if that is smaller.

    The aspect ratio is kept up to rounding to the nearest pixel. Sizes are (height, width).
    """
    if short_side is None:
        return size
    factor = min(short_side / min(size), long_side / max(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def padded_size(size: tuple[int, int], *, window: int | None, multiple: int) -> tuple[int, int]:
    """Return the size (height, width) after padding at the right and at the bottom.

    A side that is at least a window long stays, because windows end at its border. A shorter side, or any side
    without windows, grows to the next multiple.
    """
    height, width = (
        side if window is not None and side >= window else -(-side // multiple) * multiple for side in size
    )
    return height, width


def window_places(size: tuple[int, int], window: tuple[int, int], stride: int) -> Iterator[tuple[int, int]]:
    """Return the top left corners (y, x), row by row, of the windows that cover an image. All lie inside it.

    Args: size, window: (height, width), the window no larger than the image.
    """
    downs, acrosses = (
        [min(number * stride, side - part) for number in range(-(-(side - part) // stride) + 1)]
        for side, part in zip(size, window, strict=True)
    )
    return ((y, x) for y in downs for x in acrosses)


def _resize(image: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """Resize uint8 (H, W, 3) to uint8 (3, height, width), bilinearly without antialiasing, as the protocols do."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if tuple(pixels.shape[1:]) == size:
        return pixels
    resized = F.interpolate(pixels[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    return resized.round_().to(torch.uint8)
