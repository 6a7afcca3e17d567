"""The array stages: one declaration for each, in the order in which they run.

Generic code (the store, fingerprints, ledgers, submission) reads these and knows no stage by name. A new stage is a
declaration here, a group of settings in `magicseg.config.run.Config`, a module in `magicseg.stages`, and a command.
"""

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from magicseg.backends import Backend
from magicseg.config import finding
from magicseg.config.stage_settings import StageSettings
from magicseg.core.settings import Settings
from magicseg.installed_backends import NestedBackend, backends_in, choose_backend, with_nested

if TYPE_CHECKING:
    from magicseg.config.run import Config


class ArrayKind(enum.Enum):
    """What one sample is in an array of the store."""

    CAPTIONS = "captions"  # str (2,): the caption and the counterfactual caption
    IMAGE = "image"  # uint8 (H, W, 3), RGB, or one JPEG stream
    CLASS_MAP = "class-map"  # uint16 (H, W): 0 background, label ids, 65535 ignore
    QUALITY = "quality"  # str: JSON


def _no_inputs(_config: "Config") -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True, kw_only=True)
class StageDeclaration:
    """Everything that generic code knows of an array stage.

    Attributes:
        name: its group of settings, its command, and its folder in the store and in the ledger.
        backends: the kind of its back end, one of `magicseg.backends.BATCH_METHODS`.
        recipe: a part of the fingerprint. Raise it when the stage's code changes the bytes that it writes.
        arrays: the arrays that it writes besides ``quality``, by their names inside the stage's folder.
        code: the subclass of `magicseg.stages.base.Stage`, as ``module:class``.
        costliest: whether a run spends most of its time in this stage. One stage is that.
        checks: optional groups of its settings that choose further back ends, and the recipe number of each.
        further_inputs: further inputs of the fingerprint, by dotted key.
    """

    name: str
    backends: str
    recipe: int
    arrays: Mapping[str, ArrayKind]
    code: str
    costliest: bool = False
    checks: Mapping[str, int] = field(default_factory=dict)
    further_inputs: Callable[["Config"], Mapping[str, Any]] = _no_inputs

    @property
    def store_arrays(self) -> dict[str, ArrayKind]:
        """All arrays that it writes, by their paths in the store: ``mask/mask``, ``mask/quality``."""
        return {f"{self.name}/{array}": kind for array, kind in {**self.arrays, "quality": ArrayKind.QUALITY}.items()}

    def settings(self, config: "Config") -> StageSettings:
        """Return the stage's group of settings."""
        settings: StageSettings = getattr(config, self.name)
        return settings

    def backend(self, config: "Config") -> tuple[type[Backend], Settings]:
        """Return the class of the stage's back end and its validated options.

        Raises BackendError for an unknown back end, ConfigError for options it does not take.
        """
        settings = self.settings(config)
        return choose_backend(self.backends, settings.backend, settings.options, self.name)

    def all_backends(self, config: "Config") -> tuple[NestedBackend, ...]:
        """Return the stage's back end, those inside its options, and those of its checks.

        Raises BackendError, ConfigError.
        """
        checks = (getattr(self.settings(config), name) for name in self.checks)
        return (
            *with_nested(*self.backend(config)),
            *(nested for settings in checks if settings is not None for nested in backends_in(settings)),
        )


def _image_codec(config: "Config") -> dict[str, Any]:
    codec = {"store.image_codec": config.store.image_codec}
    if config.store.image_codec == "jpeg":
        return codec | {"store.jpeg_quality": config.store.jpeg_quality}
    return codec


DECLARATIONS: Mapping[str, StageDeclaration] = {
    each.name: each
    for each in (
        StageDeclaration(
            name="describe",
            backends="captioners",
            recipe=1,
            arrays={"captions": ArrayKind.CAPTIONS},
            code="magicseg.stages.describe.stage:DescribeStage",
        ),
        StageDeclaration(
            name="generate",
            backends="generators",
            recipe=2,
            arrays={"image": ArrayKind.IMAGE, "counterfactual": ArrayKind.IMAGE},
            code="magicseg.stages.generate.stage:GenerateStage",
            costliest=True,
            checks={"validity": finding.RECIPE},
            further_inputs=_image_codec,
        ),
        StageDeclaration(
            name="mask",
            backends="maskers",
            recipe=1,
            arrays={"mask": ArrayKind.CLASS_MAP},
            code="magicseg.stages.mask.stage:MaskStage",
        ),
    )
}
STAGES = tuple(DECLARATIONS)
(COSTLIEST,) = (stage.name for stage in DECLARATIONS.values() if stage.costliest)
JOBS = (*STAGES, "train", "evaluate")  # everything that a run does, in order
ARRAY_KINDS: Mapping[str, ArrayKind] = {
    path: kind for stage in DECLARATIONS.values() for path, kind in stage.store_arrays.items()
}


def stage_above(name: str) -> str | None:
    """Return the stage that runs before ``name`` and whose data it reads, or None for the first stage."""
    position = STAGES.index(name)
    return STAGES[position - 1] if position else None
