"""Settings of evaluation."""

from pydantic import Field

from magicseg.settings import Settings


class EvaluateSettings(Settings):
    """How the held-out evaluation is done."""

    scenes: int = Field(256, ge=1, description="held-out painted scenes of the miniature benchmark")
    max_objects: int = Field(2, ge=1, le=2, description="objects per held-out scene")
    batch_size: int = Field(32, ge=1)
    threshold: float = Field(0.5, ge=0, le=1, description="a pixel whose best class scores below is background")
