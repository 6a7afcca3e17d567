"""Settings of training. The defaults are the paper's (arXiv 2603.19575); presets may differ and say so."""

from typing import ClassVar

from pydantic import Field

from magicseg.model.settings import EncoderSettings, ModelSettings
from magicseg.train.data_settings import DataSettings

__all__ = ["EncoderSettings", "ModelSettings", "TrainSettings"]


class TrainSettings(ModelSettings, DataSettings):
    """The model's settings, the data's and training's. Those in ``NEUTRAL`` change neither weights nor curve."""

    NEUTRAL: ClassVar[frozenset[str]] = DataSettings.NEUTRAL | {"checkpoint_every", "log_every"}

    steps: int = Field(20_000, ge=1)
    batch_size: int = Field(default=16, ge=1, description="images per step, over all processes")
    learning_rate: float = Field(default=2e-5, gt=0)
    new_layer_lr_multiplier: float = Field(10.0, gt=0, description="for all but the encoder: prompts and decoder")
    weight_decay: float = Field(default=0.01, ge=0, description="not on norms, biases, prompts and positions")
    warmup_steps: int = Field(default=1500, ge=0)
    poly_power: float = Field(default=0.9, gt=0)
    min_learning_rate: float = Field(default=1e-6, ge=0)
    gradient_clip: float = Field(default=0.0, ge=0, description="largest norm of the gradient; 0: no limit")
    sampled_classes: int = Field(default=100, ge=1, description="an image's own classes and random others")
    focal_weight: float = Field(default=100.0, ge=0)
    focal_alpha: float = Field(default=0.25, ge=0, le=1)
    focal_gamma: float = Field(default=2.0, ge=0)
    dice_weight: float = Field(default=1.0, ge=0)
    counterfactual_weight: float = Field(default=1.0, ge=0)
    cpu_threads: int = Field(
        default=0, ge=0, description="threads of one process, part of its bits; 0: torch's choice"
    )
    checkpoint_every: int = Field(default=1000, ge=1, description="steps")
    log_every: int = Field(default=50, ge=1, description="steps")

    @property
    def model(self) -> ModelSettings:
        """The model's part alone."""
        return ModelSettings(**{name: getattr(self, name) for name in ModelSettings.model_fields})
