"""The exact masker of painted images: it paints each image again and returns the known class map."""

from collections.abc import Mapping, Sequence

import numpy as np

from magicseg.backends import Masked, MaskRequest, Rejection
from magicseg.core.errors import LabelError
from magicseg.miniature.caption import UnreadableCaption
from magicseg.miniature.painter import Painter, paint

_SAME = 8.0  # mean absolute difference, 0 to 255; different images differ by tens


class PainterMasker:
    """Back end of the mask stage for images of the generator ``painter`` with the same options."""

    Options = Painter.Options

    @classmethod
    def identity(cls, options: Painter.Options) -> Mapping[str, str | int]:
        """Return the painter's recipe."""
        return Painter.identity(options)

    def __init__(self, settings: object, options: Painter.Options) -> None:
        """Ignore the stage's settings."""
        self._options = options

    def mask(self, requests: Sequence[MaskRequest]) -> list[Masked | Rejection]:
        """Return the exact class map of each image. Images that the painter did not paint are rejected."""
        return [self._one(request) for request in requests]

    def _one(self, request: MaskRequest) -> Masked | Rejection:
        if request.image_seed is None:
            return Rejection(reason="not-painted", detail="the image was not generated")
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
        if np.abs(painted.image.astype(np.int16) - request.image).mean() > _SAME:  # JPEG changes pixels slightly
            return Rejection(reason="not-painted", detail="the painter paints another image from this caption")
        return Masked(mask=painted.mask, quality={"area": float((painted.mask > 0).mean())})
