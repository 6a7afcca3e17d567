"""Settings of the search for objects in images: the detector, and which of its candidates count."""

from pydantic import Field

from magicseg.backends import DetectorChoice
from magicseg.core.settings import Settings

RECIPE = 1  # goes up whenever the same candidates give other objects, or the same labels other captions


class FindOptions(Settings):
    """Which detector, and which of its candidates count."""

    detector: DetectorChoice
    box_threshold: float = Field(0.30, ge=0, le=1, description="least confidence of a box")
    text_threshold: float = Field(0.25, ge=0, le=1, description="least score of a box's best label")
    nms_iou: float = Field(0.7, ge=0, le=1, description="boxes of one label that overlap more are one object")
    max_objects: int = Field(20, ge=1, le=1000, description="of one label in an image: those with the best scores")
