"""The painter as a masker: it paints the picture once more, and knows exactly where it painted what."""

from collections.abc import Mapping, Sequence

import numpy as np

from magicseg.backends import Masked, MaskRequest, Rejection
from magicseg.core.errors import LabelError
from magicseg.miniature.caption import UnreadableCaption
from magicseg.miniature.painter import Painter, paint

_SAME = 8.0  # mean difference, 0 to 255; other pictures are tens apart


class PainterMasker:
    """Back end of the mask stage for images that the generator ``painter`` painted, with the same options."""

    Options = Painter.Options

    @classmethod
    def identity(cls, options: Painter.Options) -> Mapping[str, str | int]:
        """The painter's recipe."""
        return Painter.identity(options)

    def __init__(self, settings: object, options: Painter.Options) -> None:
        """Needs nothing of the stage's settings."""
        self._options = options

    def mask(self, requests: Sequence[MaskRequest]) -> list[Masked | Rejection]:
        """The exact class map of every picture; one that the painter would not paint like this is refused."""
        return [self._one(request) for request in requests]

    def _one(self, request: MaskRequest) -> Masked | Rejection:
        if request.image_seed is None:
            return Rejection(reason="not-painted", detail="a photograph")
        options = self._options
        try:
            painted = paint(
                request.caption,
                seed=request.image_seed,
                size=len(request.image),
                labels=request.labels,
                noise=options.noise,
                supersampling=options.supersampling,
            )
        except (UnreadableCaption, LabelError) as error:
            return Rejection(reason="not-painted", detail=str(error))
        if np.abs(painted.image.astype(np.int16) - request.image).mean() > _SAME:  # JPEG changes them a little
            return Rejection(reason="not-painted", detail="the painter paints another picture from this caption")
        return Masked(mask=painted.mask, quality={"area": float((painted.mask > 0).mean())})
