"""False positives on counterfactual images: classes that are predicted in a scene from which they were removed.

For image i, o_i are its own classes: those in its mask, without background. Of its n_i pixels, p_ic are predicted as
class c; of its counterfactual's m_i pixels, q_ic. Class 0 is background. Every counterfactual pixel of another class
is a false positive.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from magicseg.evaluate.metrics.formulas import ratio
from magicseg.evaluate.metrics.intervals import ImageCounts, ratio_intervals

LEAST_PERCENT = 1
"""A class is predicted in an image if it covers this share of its pixels."""

FALSE_POSITIVE_CONVENTIONS = {
    "pixels": "share of the counterfactual images' pixels that are predicted as any class but background",
    "own_pixels": "share of the counterfactual images' pixels that are predicted as a class that was removed there",
    "own_images": f"share of counterfactual images of which a removed class covers {LEAST_PERCENT} % or more",
    "found": f"share of the images with objects of which a class in their mask covers {LEAST_PERCENT} % or more; "
    "a model that predicts nothing has no false positives and finds nothing",
}


def false_positives(counts: ImageCounts) -> dict[str, Any] | None:
    """Return the scores of `FALSE_POSITIVE_CONVENTIONS` as JSON values; None without counterfactual images.

    With N images: ``pixels`` = sum_i sum_{c > 0} q_ic / sum_i m_i; ``own_pixels`` = sum_i sum_{c in o_i} q_ic /
    sum_i m_i; ``own_images`` = the share of the N images with max_{c in o_i} q_ic >= 0.01 m_i; ``found`` = the same
    with p_ic and n_i. The first three are better if lower, ``found`` if higher.

    Returns: ``images``: N; each score NAME, None without pixels; ``NAME_interval``: [low, high], a BCa interval over
        images, or None (`ratio_intervals`).
    """
    if counts.counterfactual is None:
        return None
    parts, wholes = _parts_and_wholes(counts, counts.counterfactual)
    values = ratio(parts.sum(axis=0), wholes.sum(axis=0))
    results: dict[str, Any] = {"images": len(parts)}
    spread = ratio_intervals(parts, wholes)
    for name, value, interval in zip(FALSE_POSITIVE_CONVENTIONS, values.tolist(), spread, strict=True):
        results[name] = None if np.isnan(value) else value
        results[f"{name}_interval"] = None if interval is None else list(interval)
    return results


def _parts_and_wholes(
    counts: ImageCounts, counterfactual: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the scores' numerators and denominators by image, float64 (images, scores)."""
    own = counts.truth > 0
    own[:, 0] = False
    removed = np.where(own, counterfactual, 0)
    pixels = counterfactual.sum(axis=1)
    parts = [
        counterfactual[:, 1:].sum(axis=1),
        removed.sum(axis=1),
        _is_shown(removed, pixels),
        _is_shown(np.where(own, counts.predicted, 0), counts.predicted.sum(axis=1)),
    ]
    ones = np.ones(len(pixels))
    return np.stack(parts, axis=1).astype(np.float64), np.stack([pixels, pixels, ones, ones], axis=1)


def _is_shown(predicted: NDArray[np.int64], pixels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return in which images one class covers enough. Args: predicted: (images, classes). pixels: (images,)."""
    largest = predicted.max(axis=1)
    shown: NDArray[np.bool_] = (largest > 0) & (100 * largest >= LEAST_PERCENT * pixels)
    return shown
