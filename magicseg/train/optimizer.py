"""The optimizer's parameter groups and the learning rate of each step."""

from collections.abc import Iterable

import torch
from torch import nn

from magicseg.config.training import TrainSettings

_NEVER_DECAYED = ("class_token", "positions", "positional_embedding", "prompts.tokens")
_WARMUP_RATIO = 1e-6  # of the schedule "release": the first step's share of the regular rate


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Return AdamW with up to four groups: encoder or new layers, with or without weight decay.

    New layers (all but ``encoder``) have ``new_layer_lr_multiplier`` times the learning rate, which is their group's
    ``scale``. Norms, biases, tokens and positions have no weight decay, unless ``weight_decay_on`` is "all". Frozen
    parameters are in no group.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in trained_parameters(model):
        is_new = not name.startswith("encoder.")
        is_weight = parameter.dim() > 1 and not name.endswith(_NEVER_DECAYED)
        decayed = is_weight or settings.weight_decay_on == "all"
        groups.setdefault((is_new, decayed), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": settings.weight_decay if decayed else 0.0,
                "scale": settings.new_layer_lr_multiplier if is_new else 1.0,
            }
            for (is_new, decayed), parameters in sorted(groups.items())
        ],
        lr=settings.learning_rate,
        fused=True,
    )


def trained_parameters(model: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    """Return names and parameters that are not frozen, in the model's order."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def learning_rate(step: int, settings: TrainSettings, *, scale: float = 1.0) -> float:
    """Return the learning rate of a group with this ``scale`` at ``step`` (from 0); 1: the encoder's."""
    if settings.schedule == "release":
        return _release_rate(step, settings, base=settings.learning_rate * scale)
    return _poly_rate(step, settings) * scale


def _poly_rate(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then polynomial decay over the remaining steps. The floor is multiplied by a group's scale."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    least = min(settings.min_learning_rate, settings.learning_rate)
    done = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return float(least + (settings.learning_rate - least) * (1 - done) ** settings.poly_power)


def _release_rate(step: int, settings: TrainSettings, *, base: float) -> float:
    """Polynomial decay over all steps to one floor for every group; the warm-up is a factor on it.

        regular(s) = (base - min) (1 - s / steps)^power + min
        rate(s)    = regular(s) (1 - (1 - s / warmup) (1 - 1e-6)) for s < warmup, else regular(s)

    Source: the configuration of the paper's release, which names mmcv's policies "poly" and "linear".
    """
    least = settings.min_learning_rate
    regular = (base - least) * (1 - step / settings.steps) ** settings.poly_power + least
    if step < settings.warmup_steps:
        regular *= 1 - (1 - step / settings.warmup_steps) * (1 - _WARMUP_RATIO)
    return float(regular)


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, settings: TrainSettings) -> None:
    """Set every group's learning rate to `learning_rate` at ``step`` (from 0) for its ``scale``."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, settings, scale=group["scale"])
