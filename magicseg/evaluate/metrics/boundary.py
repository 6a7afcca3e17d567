"""Boundary IoU: how well outlines fit, independent of the object's size."""

import math

import numpy as np
from numpy.typing import NDArray

DILATION_RATIO = 0.02
"""Width of the band along outlines, as a share of the image's diagonal. The paper's value."""


def band_width(size: tuple[int, int], ratio: float = DILATION_RATIO) -> int:
    """Return the band's width in pixels: ``ratio`` of the diagonal of (height, width), rounded, at least 1."""
    return max(1, round(ratio * math.hypot(*size)))


def boundary_counts(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], classes: int, ignore: int, *, first: int, width: int
) -> NDArray[np.int64]:
    """Count the pixels of every class's boundary band: in both maps, in the ground truth, in the prediction.

    Boundary IoU (Cheng et al., CVPR 2021, arXiv 2103.16562, equation 2) of masks G and P is
    |G_d n P_d| / |G_d u P_d| with G_d the pixels of G within d pixels of its outline. As in the authors' code, G_d is
    G less its erosion by a square, ``width`` times 3 x 3, and the image's border is outline too.

    All classes are counted at once: a pixel is in its class's band if the square of side 2 d + 1 around it holds
    another value or crosses the image's border. Ignored pixels belong to no class in either map. They are in no band,
    and both maps have an outline where they touch a class, so that a perfect prediction scores 1.

    Args: truth, prediction: integers (H, W); counted pixels hold ``first`` to ``first + classes - 1``.
        ignore: the truth's value of pixels that do not count.
    Returns: int64 (3, classes): n(G_d n P_d), n(G_d), n(P_d) by class; the IoU is the first over the others' sum
        less the first, summed over the images.
    """
    ignored = truth == ignore
    rows = np.where(ignored, -1, truth.astype(np.int32) - first).astype(np.int16)
    columns = np.where(ignored, -1, prediction.astype(np.int32) - first).astype(np.int16)
    in_truth, in_prediction = (_band(values, width) for values in (rows, columns))
    in_both = in_truth & in_prediction & (rows == columns)
    counts = [
        np.bincount(values[where], minlength=classes)
        for values, where in ((rows, in_both), (rows, in_truth), (columns, in_prediction))
    ]
    return np.stack(counts).astype(np.int64)


def _band(values: NDArray[np.int16], width: int) -> NDArray[np.bool_]:
    """Return which pixels of a class have another value or the border within ``width`` rows and columns."""
    from scipy.ndimage import maximum_filter1d, minimum_filter1d

    outside = np.iinfo(np.int16).min
    low = high = values
    for axis in (0, 1):
        low = minimum_filter1d(low, 2 * width + 1, axis=axis, mode="constant", cval=outside)
        high = maximum_filter1d(high, 2 * width + 1, axis=axis, mode="constant", cval=outside)
    band: NDArray[np.bool_] = (low != high) & (values >= 0)
    return band
