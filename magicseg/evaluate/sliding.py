"""Any image through a model of one input size: resize, overlapping windows, averaged logits, the image's own size.

    logits = slide(head.logits, image, short_side=512, window=512, stride_px=426, batch_size=4, multiple=head.stride)

The rules are those of mmsegmentation 1.x, by which the field's numbers are computed: its ``Resize`` with
``scale=(2048, 512), keep_ratio=True``, its ``slide_inference``, and its bilinear resize of the logits (not of the
label map) back to the image's own size.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

LONG_SIDE = 2048


def slide(
    head_logits: Callable[[Tensor], Tensor],
    image: NDArray[np.uint8],
    *,
    short_side: int | None,
    window: int | None,
    stride_px: int,
    batch_size: int,
    multiple: int,
    long_side: int = LONG_SIDE,
) -> Tensor:
    """Logits of every pixel of one image.

    The image is resized (`resized_size`), padded (`padded_size`) and cut into windows (`window_places`); a pixel's
    logit is the mean over the windows that hold it. Batches hold windows of this one image, in a fixed order, so
    that what else is scored, where and in what order changes no bit.

    Args:
        head_logits: uint8 (B, 3, h, w) on the CPU -> float (B, K, h, w).
        image: uint8 (H, W, 3), RGB.
        short_side: pixels of the shorter side after resizing, where ``long_side`` allows; None: as it is.
        window: side of the windows, pixels, a multiple of ``multiple``; None: the whole image at once.
        stride_px: pixels from one window to the next; the last is moved back to the border.
        batch_size: windows at a time. It decides the last bits of float arithmetic.
        multiple: sides of what ``head_logits`` gets are multiples of this.
        long_side: the longer side's limit after resizing, pixels.

    Returns: float32 (K, H, W), on the device of what ``head_logits`` returns.
    Raises: ValueError for a window that is no multiple, or a stride that leaves gaps.
    """
    if window is not None and window % multiple:
        nearest = max(multiple, round(window / multiple) * multiple)
        raise ValueError(f"a window of {window} pixels is no multiple of {multiple}; {nearest} is")
    if window is not None and not 1 <= stride_px <= window:
        raise ValueError(f"windows of {window} pixels every {stride_px} leave gaps, or stand still")
    own_size = (image.shape[0], image.shape[1])
    size = resized_size(own_size, short_side=short_side, long_side=long_side)
    pixels = _resize(image, size)
    padded = padded_size(size, window=window, multiple=multiple)
    # Repeating the border's pixels makes no edge that a model could take for an object's.
    rows = torch.arange(padded[0]).clamp_(max=size[0] - 1)
    columns = torch.arange(padded[1]).clamp_(max=size[1] - 1)
    pixels = pixels[:, rows][:, :, columns]

    height, width = (side if window is None else min(side, window) for side in padded)
    places = list(window_places(padded, (height, width), stride_px))
    total: Tensor | None = None
    counts = torch.zeros(padded)
    for start in range(0, len(places), batch_size):
        batch = places[start : start + batch_size]
        crops = torch.stack([pixels[:, y : y + height, x : x + width] for y, x in batch])
        for (y, x), logits in zip(batch, head_logits(crops).float(), strict=True):
            if total is None:
                total = logits.new_zeros((len(logits), *padded))
            total[:, y : y + height, x : x + width] += logits
            counts[y : y + height, x : x + width] += 1
    assert total is not None  # there is a window in every image
    mean = total.div_(counts.to(total.device))[:, : size[0], : size[1]]
    if size == own_size:
        return mean
    return F.interpolate(mean[None], size=own_size, mode="bilinear", align_corners=False)[0]


def resized_size(size: tuple[int, int], *, short_side: int | None, long_side: int = LONG_SIDE) -> tuple[int, int]:
    """The size with the shorter side at ``short_side``, or the longer at ``long_side`` where that is smaller.

    The aspect ratio is kept up to rounding to the nearest pixel. Sizes are (height, width).
    """
    if short_side is None:
        return size
    factor = min(short_side / min(size), long_side / max(size))
    height, width = (max(1, int(side * factor + 0.5)) for side in size)
    return height, width


def padded_size(size: tuple[int, int], *, window: int | None, multiple: int) -> tuple[int, int]:
    """The size (height, width) after padding at the right and at the bottom.

    A side that a window fits into stays: windows end at its border. A shorter one, or any without windows, grows to
    the next multiple.
    """
    height, width = (
        side if window is not None and side >= window else -(-side // multiple) * multiple for side in size
    )
    return height, width


def window_places(size: tuple[int, int], window: tuple[int, int], stride: int) -> Iterator[tuple[int, int]]:
    """Top left corners (y, x), row by row, of the windows that cover an image; none reaches over its border.

    Args: size, window: (height, width), the window no larger than the image.
    """
    downs, acrosses = (
        [min(number * stride, side - part) for number in range(-(-(side - part) // stride) + 1)]
        for side, part in zip(size, window, strict=True)
    )
    return ((y, x) for y in downs for x in acrosses)


def _resize(image: NDArray[np.uint8], size: tuple[int, int]) -> Tensor:
    """uint8 (H, W, 3) -> uint8 (3, height, width). Bilinear without antialiasing, as the protocols' libraries do."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if tuple(pixels.shape[1:]) == size:
        return pixels
    resized = F.interpolate(pixels[None].float(), size=size, mode="bilinear", align_corners=False)[0]
    return resized.round_().to(torch.uint8)
