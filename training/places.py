"""Position and area ranges of objects from a caption's words: the only localization that the CLIP is trained on.

The ranges are rough, with margins. They do not depend on images or on the painter's random numbers.
"""

from magicseg.miniature.caption import ObjectSpec

_SPANS = {
    "small": (0.38, 0.46),
    "medium-sized": (0.50, 0.60),
    "large": (0.64, 0.76),
}  # widths, as fractions of the image
_CENTRES = {"left": 0.26, "middle": 0.5, "right": 0.74}
_CROWDED = 0.8  # factor on the width for two objects
_MARGIN = 0.08  # on each side
_COVER = (0.25, 0.8)  # an object's fraction of its bounding square


def columns_of(item: ObjectSpec, *, crowded: bool) -> tuple[float, float]:
    """Return the leftmost and the rightmost position of an object, as fractions of the image's width."""
    if item.place is None:
        return 0.0, 1.0
    width = _widths(item, crowded=crowded)[1]
    centre = min(max(_CENTRES[item.place], width / 2), 1 - width / 2)
    return max(0.0, centre - width / 2 - _MARGIN), min(1.0, centre + width / 2 + _MARGIN)


def areas_of(item: ObjectSpec, *, crowded: bool) -> tuple[float, float]:
    """Return the smallest and the largest area of an object, as fractions of the image."""
    low, high = _widths(item, crowded=crowded)
    return _COVER[0] * low**2, _COVER[1] * high**2


def _widths(item: ObjectSpec, *, crowded: bool) -> tuple[float, float]:
    low, high = _SPANS[item.size] if item.size else (_SPANS["small"][0], _SPANS["large"][1])
    factor = _CROWDED if crowded else 1.0
    return low * factor, high * factor
