"""Settings of training. Presets may differ from the defaults and say so.

The numbers are those that the paper (arXiv 2603.19575) and the authors' release name. The losses they weigh are
averaged otherwise than in the release, so the balance is another (docs/miniature.md).
"""

from typing import ClassVar, Literal

from pydantic import Field

from magicseg.config.model import EncoderSettings, ModelSettings
from magicseg.config.training_data import DataSettings

__all__ = ["EncoderSettings", "ModelSettings", "TrainSettings"]


class TrainSettings(ModelSettings, DataSettings):
    """The model's settings, the data's and training's. Those in ``NEUTRAL`` change neither weights nor curve.

    ``strategy`` is among them as the number of processes is: a matter of where, with another rounding.
    """

    NEUTRAL: ClassVar[frozenset[str]] = DataSettings.NEUTRAL | {
        "checkpoint_activations",
        "checkpoint_every",
        "evaluate_every",
        "keep_checkpoints",
        "keep_every",
        "log_every",
        "strategy",
        "tensorboard",
        "wandb",
    }

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
    deep_supervision_weight: float = Field(
        default=0.0, ge=0, description="of focal and dice on each earlier decoder layer; 0: the last layer only"
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="the model is a moving average of the weights; null: the last weights"
    )
    accumulate: int = Field(default=1, ge=1, description="parts that a process's images go through the model in")
    precision: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="of the model; losses are fp32")
    compile: bool = Field(default=False, description="have torch.compile make the step's module faster")
    checkpoint_activations: bool = Field(
        default=False, description="compute the encoder's layers twice instead of keeping what they computed"
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto", description="whole weights in every process (ddp) or parts (fsdp); auto: ddp"
    )
    cpu_threads: int = Field(
        default=0, ge=0, description="threads of one process, part of its bits; 0: torch's choice"
    )
    checkpoint_every: int = Field(default=1000, ge=1, description="steps")
    keep_checkpoints: int = Field(default=2, ge=1, description="the newest so many, and the best if evaluated")
    keep_every: int | None = Field(None, ge=1, description="keep those of every so many steps for good")
    evaluate_every: int = Field(default=0, ge=0, description="steps; 0: never")
    log_every: int = Field(default=50, ge=1, description="steps")
    tensorboard: bool = Field(default=False, description="write RUN/tensorboard too")
    wandb: str | None = Field(None, min_length=1, description="the project at Weights & Biases to log to; null: none")

    @property
    def model(self) -> ModelSettings:
        """The model's part alone."""
        return ModelSettings(**{name: getattr(self, name) for name in ModelSettings.model_fields})
