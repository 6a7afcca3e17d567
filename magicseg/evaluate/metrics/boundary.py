"""Boundary IoU: how well outlines fit, whatever the size of the object."""

import math

import numpy as np
from numpy.typing import NDArray

DILATION_RATIO = 0.02
"""Width of the band along outlines as a share of the image's diagonal; the paper's choice."""


def band_width(size: tuple[int, int], ratio: float = DILATION_RATIO) -> int:
    """The band's width in pixels for an image of (height, width): ``ratio`` of its diagonal, rounded, at least 1."""
    return max(1, round(ratio * math.hypot(*size)))


def boundary_counts(
    truth: NDArray[np.integer], prediction: NDArray[np.integer], classes: int, ignore: int, *, first: int, width: int
) -> NDArray[np.int64]:
    """Pixels of every class's boundary band: in both maps, in the ground truth's, in the prediction's.

    Boundary IoU (Cheng et al., CVPR 2021, arXiv 2103.16562, equation 2) of masks G and P is
    |G_d n P_d| / |G_d u P_d| with G_d the pixels of G within d pixels of its outline. As in the authors' code, G_d is
    G less its erosion by a square, ``width`` times 3 x 3, and the image's border is outline too.

    For class maps all classes are done at once: a pixel is in its class's band where the square of side 2 d + 1
    around it holds another value, or reaches over the border. Ignored pixels are no class in either map: they are in
    no band, and where they touch a class both maps have an outline, so that a perfect prediction scores 1.

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
    """Where a class's pixel has another value, or the image's end, within ``width`` pixels in rows and columns."""
    from scipy.ndimage import maximum_filter1d, minimum_filter1d

    outside = np.iinfo(np.int16).min
    low = high = values
    for axis in (0, 1):
        low = minimum_filter1d(low, 2 * width + 1, axis=axis, mode="constant", cval=outside)
        high = maximum_filter1d(high, 2 * width + 1, axis=axis, mode="constant", cval=outside)
    band: NDArray[np.bool_] = (low != high) & (values >= 0)
    return band
