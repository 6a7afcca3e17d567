"""Settings of the search for objects in images: the detector, its thresholds, and the segmenter."""

from typing import Self

from pydantic import Field, model_validator

from magicseg.core.settings import Settings
from magicseg.installed_backends import DetectorChoice, SegmenterChoice

RECIPE = 1  # raise it when the same candidates give other objects, or the same labels other captions


class FindOptions(Settings):
    """Which detector, and which of its candidates count."""

    detector: DetectorChoice
    box_threshold: float = Field(0.30, ge=0, le=1, description="least confidence of a box")
    text_threshold: float = Field(0.25, ge=0, le=1, description="least score of a box's best label")
    nms_iou: float = Field(0.7, ge=0, le=1, description="boxes of one label that overlap more are one object")
    max_objects: int = Field(20, ge=1, le=1000, description="of one label in an image: those with the best scores")

    def finds_like(self, other: "FindOptions") -> bool:
        """Return whether both find the same objects: equal detector and thresholds."""
        return all(getattr(self, name) == getattr(other, name) for name in FindOptions.model_fields)


class OutlineOptions(FindOptions):
    """A search that also gives a mask for every object."""

    segmenter: SegmenterChoice | None = Field(
        None, description="outlines the detector's boxes; null: the detector itself gives masks"
    )

    @model_validator(mode="after")
    def _has_masks(self) -> Self:
        if self.segmenter is None and not getattr(self.detector.chosen()[0], "GIVES_MASKS", False):
            raise ValueError(f"segmenter is missing: detector {self.detector.backend!r} gives boxes only")
        return self
