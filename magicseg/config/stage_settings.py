"""Settings of the array stages: describe, generate, mask."""

from typing import Any, ClassVar

from pydantic import Field

from magicseg.config.finding import FindOptions
from magicseg.core.settings import Settings


class ImageQualitySettings(Settings):
    """Both images of a pair must reach these; see `magicseg.stages.generate.image_quality`."""

    min_sharpness: float = Field(0.0, ge=0, description="variance of the Laplacian, 0 to 255 grey; 0 = off")
    min_contrast: float = Field(0.0, ge=0, le=128, description="standard deviation, 0 to 255 grey; 0 = off")


class ValiditySettings(FindOptions):
    """A detector must find all labels in the image, and none in the counterfactual; else the pair is regenerated."""

    batch_size: int = Field(16, ge=1, description="images in one call of the detector")
    retries: int = Field(2, ge=0, le=20, description="new tries, each with a new seed, before the sample is dropped")


class StageSettings(Settings):
    """What the array stages share."""

    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"one_reason_at_most"})

    backend: str = Field(description="an installed back end's name")
    batch_size: int = Field(16, ge=1, description="samples in one call of the back end; part of the fingerprint")
    one_reason_at_most: float = Field(
        0.9,
        gt=0,
        le=1,
        description="stop the stage if a larger share of samples is dropped for one reason, or gets a fallback",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the back end's own settings")


class DescribeSettings(StageSettings):
    """Labels to captions."""


class GenerateSettings(StageSettings):
    """Captions to pairs of images."""

    size: int = Field(512, ge=8, le=8192, description="height and width of the images in pixels")
    quality: ImageQualitySettings = ImageQualitySettings()
    validity: ValiditySettings | None = Field(None, description="a detector checks both images of every pair")


class MaskSettings(StageSettings):
    """Pairs of images to class maps."""
