"""What a caption's words say of where an object is and how large: the only word on it that the CLIP hears.

Roughly, and with room to spare: nothing here looks at a picture, or knows the painter's random numbers.
"""

from magicseg.miniature.caption import ObjectSpec

_SPANS = {"small": (0.38, 0.46), "medium-sized": (0.50, 0.60), "large": (0.64, 0.76)}  # widths, shares of the image
_CENTRES = {"left": 0.26, "middle": 0.5, "right": 0.74}
_CROWDED = 0.8  # of a width, where there are two objects
_MARGIN = 0.08  # on each side
_COVER = (0.25, 0.8)  # an object's share of the square that it fits into


def columns_of(item: ObjectSpec, *, crowded: bool) -> tuple[float, float]:
    """From where to where the object may reach: shares of the image's width."""
    if item.place is None:
        return 0.0, 1.0
    width = _widths(item, crowded=crowded)[1]
    centre = min(max(_CENTRES[item.place], width / 2), 1 - width / 2)
    return max(0.0, centre - width / 2 - _MARGIN), min(1.0, centre + width / 2 + _MARGIN)


def areas_of(item: ObjectSpec, *, crowded: bool) -> tuple[float, float]:
    """How much of the image it covers, at least and at most."""
    low, high = _widths(item, crowded=crowded)
    return _COVER[0] * low**2, _COVER[1] * high**2


def _widths(item: ObjectSpec, *, crowded: bool) -> tuple[float, float]:
    low, high = _SPANS[item.size] if item.size else (_SPANS["small"][0], _SPANS["large"][1])
    factor = _CROWDED if crowded else 1.0
    return low * factor, high * factor
