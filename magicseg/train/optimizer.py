"""The optimizer's parameter groups and the learning rate of each step."""

from collections.abc import Iterable

import torch
from torch import nn

from magicseg.config.training import TrainSettings

_NEVER_DECAYED = ("class_token", "positions", "positional_embedding", "prompts.tokens")


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Return AdamW with up to four groups: encoder or new layers, with or without weight decay.

    New layers (all but ``encoder``) have ``new_layer_lr_multiplier`` times the learning rate. Norms, biases, tokens
    and positions have no weight decay. Frozen parameters are in no group. Each group's ``scale`` multiplies the value
    of `learning_rate`.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in trained_parameters(model):
        is_new = not name.startswith("encoder.")
        decayed = parameter.dim() > 1 and not name.endswith(_NEVER_DECAYED)
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


def learning_rate(step: int, settings: TrainSettings) -> float:
    """Return the encoder's learning rate at ``step`` (from 0): linear warm-up, then polynomial decay."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    least = min(settings.min_learning_rate, settings.learning_rate)
    done = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return float(least + (settings.learning_rate - least) * (1 - done) ** settings.poly_power)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's learning rate to ``rate`` times its ``scale``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
