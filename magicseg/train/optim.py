"""The optimiser's parameter groups and the learning rate of each step."""

from collections.abc import Iterable

import torch
from torch import nn

from magicseg.config.training import TrainSettings

_NEVER_DECAYED = ("class_token", "positions", "positional_embedding", "prompts.tokens")


def build_optimizer(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW with up to four groups: encoder or new layers, decayed or not. Frozen parameters are left out.

    New layers (all but ``encoder``) learn ``new_layer_lr_multiplier`` times faster. Norms, biases, tokens and
    positions are not decayed. Each group's ``scale`` multiplies `learning_rate`'s value.
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
    """Names and parameters that learn, in the model's order."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad)


def learning_rate(step: int, settings: TrainSettings) -> float:
    """The encoder's learning rate at ``step`` (from 0): linear warm-up, then a polynomial to the least."""
    if step < settings.warmup_steps:
        return settings.learning_rate * (step + 1) / settings.warmup_steps
    least = min(settings.min_learning_rate, settings.learning_rate)
    done = (step - settings.warmup_steps) / max(settings.steps - settings.warmup_steps, 1)
    return float(least + (settings.learning_rate - least) * (1 - done) ** settings.poly_power)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group ``rate`` times its ``scale``."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["scale"]
