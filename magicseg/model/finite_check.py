"""Refuse weights and scores that are not finite, from a damaged file, a diverged training or a dtype overflow."""

from torch import Tensor, nn

from magicseg.core.errors import DataError


class NotFiniteError(DataError):
    """The scores of an image are not finite numbers."""


def refuse_weights_not_finite(module: nn.Module, where: str) -> None:
    """Raise DataError, naming the first such tensor, if a module holds values that are not finite."""
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise DataError(
                f"{where}: {name} holds values that are not finite numbers, so all predictions would be the same",
                hint="restore the file, or train again with a lower learning rate",
            )


def refuse_scores_not_finite(scores: Tensor) -> None:
    """Raise NotFiniteError if a model's scores are not finite. Synchronizes with the GPU."""
    if not bool(scores.isfinite().all()):
        raise NotFiniteError(
            "the model's scores of an image are not finite numbers",
            hint="are its weights damaged, or was it trained to the end? magicseg report RUN",
        )
