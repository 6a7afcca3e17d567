"""Settings of training. A preset that differs from the defaults says so.

The defaults are the numbers of the paper (arXiv 2603.19575) and the authors' release. With ``losses: mean`` the same
weights balance the losses differently from the release (docs/method.md).
"""

from typing import ClassVar, Literal

from pydantic import Field

from magicseg.config.model import EncoderSettings, ModelSettings
from magicseg.config.training_data import DataSettings

__all__ = ["EncoderSettings", "ModelSettings", "TrainSettings"]


class TrainSettings(ModelSettings, DataSettings):
    """The settings of the model, the data and the training. Those in ``NEUTRAL`` change neither weights nor curve.

    ``strategy`` and ``class_chunk`` are among them, although they change rounding, as does the number of ranks.
    """

    NEUTRAL: ClassVar[frozenset[str]] = DataSettings.NEUTRAL | {
        "checkpoint_activations",
        "checkpoint_every",
        "class_chunk",
        "evaluate_every",
        "keep_checkpoints",
        "keep_every",
        "log_every",
        "strategy",
        "tensorboard",
        "wandb",
    }

    steps: int = Field(20_000, ge=1)
    batch_size: int = Field(default=16, ge=1, description="images per step, over all ranks")
    learning_rate: float = Field(default=2e-5, gt=0)
    new_layer_lr_multiplier: float = Field(10.0, gt=0, description="for prompts and decoder")
    weight_decay: float = Field(default=0.01, ge=0)
    weight_decay_on: Literal["weights", "all"] = Field(
        default="weights", description="weights: not on norms, biases, prompts and positions; all: on these too"
    )
    schedule: Literal["poly", "release"] = Field(
        default="poly",
        description="poly: polynomial decay after the warm-up; release: from step 0, with one floor for all groups",
    )
    warmup_steps: int = Field(default=1500, ge=0)
    poly_power: float = Field(default=0.9, gt=0)
    min_learning_rate: float = Field(default=1e-6, ge=0)
    gradient_clip: float = Field(default=0.0, ge=0, description="largest norm of the gradient; 0: no limit")
    sampled_classes: int = Field(
        default=100, ge=1, description="queried classes per image: its own and random others"
    )
    hard_negatives: int = Field(
        default=0,
        ge=0,
        description="of the random others, as many are the classes that the counterfactual image resembles most",
    )
    losses: Literal["mean", "release"] = Field(
        default="mean",
        description="focal loss; mean: over all masks; release: the sum over all masks by the number of present ones",
    )
    focal_weight: float = Field(default=100.0, ge=0)
    focal_alpha: float = Field(default=0.25, ge=0, le=1)
    focal_gamma: float = Field(default=2.0, ge=0)
    dice_weight: float = Field(default=1.0, ge=0)
    counterfactual_weight: float = Field(default=1.0, ge=0)
    silence_weight: float = Field(
        default=0.0, ge=0, description="weight of the focal loss on counterfactual images, all pixels negative"
    )
    aligned_pair_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the loss that lets a pair's masks differ by the objects only",
    )
    aligned_pair_margin: float = Field(
        default=2.0, gt=0, description="in logits, between an object's pixels and the same pixels without it"
    )
    aligned_pair_tolerance: int = Field(
        default=12,
        ge=0,
        le=255,
        description="largest difference of a background pixel's channels between the images of a pair to compare it",
    )
    text_direction_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of the loss that turns a counterfactual's class token away from its image's classes",
    )
    text_direction_margin: float = Field(default=0.2, gt=0, le=2, description="between the two images' cosines")
    deep_supervision_weight: float = Field(
        default=0.0,
        ge=0,
        description="weight of focal and dice on each earlier decoder layer; 0: the last layer only",
    )
    ema_decay: float | None = Field(
        None, gt=0, lt=1, description="save a moving average of the weights; null: the last weights"
    )
    accumulate: int = Field(default=1, ge=1, description="micro-batches per step on each rank")
    precision: Literal["fp32", "bf16", "fp16"] = Field(default="fp32", description="of the model; losses are fp32")
    compile: bool = Field(default=False, description="compile model and losses with torch.compile")
    checkpoint_activations: bool = Field(
        default=False, description="recompute the encoder's activations in the backward pass instead of keeping them"
    )
    class_chunk: int = Field(
        default=0,
        ge=0,
        description="queried classes whose masks are computed at a time, in both passes, to save memory; 0: all",
    )
    strategy: Literal["auto", "ddp", "fsdp"] = Field(
        default="auto", description="replicate weights on every rank (ddp) or shard them (fsdp); auto: ddp"
    )
    cpu_threads: int = Field(
        default=0, ge=0, description="threads per rank, which affect rounding; 0: torch's choice"
    )
    checkpoint_every: int = Field(default=1000, ge=1, description="steps")
    keep_checkpoints: int = Field(
        default=2, ge=1, description="number of newest checkpoints kept, besides the best by evaluation"
    )
    keep_every: int | None = Field(
        None, ge=1, description="steps between checkpoints that are never removed; null: none"
    )
    evaluate_every: int = Field(default=0, ge=0, description="steps; 0: never")
    log_every: int = Field(default=50, ge=1, description="steps")
    tensorboard: bool = Field(default=False, description="also write RUN/tensorboard")
    wandb: str | None = Field(None, min_length=1, description="project at Weights & Biases to log to; null: none")

    @property
    def model(self) -> ModelSettings:
        """The settings of the model only."""
        return ModelSettings(**{name: getattr(self, name) for name in ModelSettings.model_fields})
