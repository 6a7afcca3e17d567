"""The settings of the generate stage that hold for every back end: which pairs are good enough."""

from pydantic import Field

from magicseg.mask.finding import FindOptions
from magicseg.settings import Settings


class ImageQualitySettings(Settings):
    """Both images of a pair must reach these; see `magicseg.generate.measures`."""

    min_sharpness: float = Field(0.0, ge=0, description="variance of the Laplacian, 0 to 255 grey; 0 = off")
    min_contrast: float = Field(0.0, ge=0, le=128, description="standard deviation, 0 to 255 grey; 0 = off")


class ValiditySettings(FindOptions):
    """A detector must find every label in the image, and none in the counterfactual; else the pair is made again."""

    batch_size: int = Field(16, ge=1, description="images in one call of the detector")
    retries: int = Field(2, ge=0, le=20, description="new tries, each with a new seed, before the sample is dropped")
