"""The settings of caches across sampler steps: ``generate.options.cache``. All of them change pixels.

Each class has the parameters of one of diffusers' caches. `magicseg.stages.generate.acceleration` enables them.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from magicseg.core.settings import Settings

Timesteps = tuple[int, int]


class FirstBlockCache(Settings):
    """Skip the remaining blocks in a step whose first block changes little (First Block Cache).

    The change is a mean over the whole batch, so it is for ``generate.batch_size: 1``: one pair.
    """

    method: Literal["first-block"]
    threshold: float = Field(0.05, gt=0, le=1, description="relative change of the first block's residual")


class MagCache(Settings):
    """Skip all blocks in steps whose residual is predicted to keep its size (MagCache)."""

    method: Literal["mag"]
    threshold: float = Field(0.06, gt=0, le=1, description="accumulated error below which a step is skipped")
    max_skip_steps: int = Field(3, ge=1, le=100, description="consecutive steps to skip at most")
    retention: float = Field(0.2, ge=0, le=1, description="share of the first steps that is never skipped")
    ratios: tuple[float, ...] | None = Field(
        None, min_length=2, description="the checkpoint's magnitude ratios; null: those diffusers has for FLUX.1"
    )


class _AttentionCache(Settings):
    """What caches of attention outputs share."""

    every: int = Field(2, ge=2, le=100, description="compute attention in one of so many steps")
    timesteps: Timesteps = Field(description="from and to: attention is reused inside; the noisiest is 1000")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.timesteps[0] >= self.timesteps[1]:
            raise ValueError(f"timesteps is {list(self.timesteps)}: the first must be below the second")
        return self


class PyramidCache(_AttentionCache):
    """Reuse attention outputs between steps (Pyramid Attention Broadcast)."""

    method: Literal["pyramid"]
    timesteps: Timesteps = (100, 800)


class FasterCache(_AttentionCache):
    """Extrapolate attention outputs from the last two computed ones (FasterCache)."""

    method: Literal["faster"]
    timesteps: Timesteps = (-1, 681)
    weight: float = Field(0.5, ge=0, le=1, description="weight of the difference of the last two outputs")


class TaylorSeerCache(Settings):
    """Predict attention outputs by a Taylor series over the steps (TaylorSeer)."""

    method: Literal["taylorseer"]
    interval: int = Field(5, ge=2, le=100, description="steps from one computation to the next")
    first_step: int = Field(3, ge=1, description="steps at the beginning that are computed")
    last_step: int | None = Field(None, ge=2, description="compute every step from this one; null: none")
    order: int = Field(1, ge=1, le=4, description="of the series")


StepCache = Annotated[
    FirstBlockCache | MagCache | PyramidCache | FasterCache | TaylorSeerCache, Field(discriminator="method")
]
