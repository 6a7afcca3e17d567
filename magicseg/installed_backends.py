"""Find installed back ends by name, validate their options, and walk over back ends nested in options."""

import functools
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar, Self, cast

from pydantic import Field, ValidationError, model_validator

from magicseg.backends import BATCH_METHODS, Backend
from magicseg.core.errors import BackendError, ConfigError, MagicsegError
from magicseg.core.setting_errors import faults
from magicseg.core.settings import Settings
from magicseg.weights import Weights


def find_backend(kind: str, name: str) -> type[Backend]:
    """Return the class of a back end. Args: kind: a key of `BATCH_METHODS`, such as "captioners".

    Raises BackendError if no back end or several have this name, if its import fails, or if it lacks a member.
    """
    installed = _installed(f"magicseg.{kind}", tuple(sys.path))
    found = [entry for entry in installed if entry.name == name]
    if not found:
        raise BackendError(
            f"there is no back end {name!r} among the {kind}",
            hint=f"installed: {', '.join(sorted({entry.name for entry in installed})) or 'none'}",
        )
    if len(found) > 1:
        packages = ", ".join(sorted(map(_package, found)))
        raise BackendError(
            f"several packages have a back end {name!r} among the {kind}: {packages}",
            hint="pip uninstall all but one",
        )
    (entry,) = found
    what = f"back end {name!r} ({entry.value})"
    try:
        backend = entry.load()
    except Exception as error:  # foreign code
        package = _package(entry)
        remedy = "install its libraries: pip install 'magicseg[models]'"
        raise BackendError(
            f"{what} cannot be imported: {type(error).__name__}: {error}",
            hint=remedy if package == "magicseg" else f"mend or reinstall {package}",
        ) from error
    lacking = [part for part in ("Options", "identity", BATCH_METHODS[kind]) if not hasattr(backend, part)]
    if lacking:
        raise BackendError(
            f"{what} lacks {', '.join(lacking)}", hint="what a class has: python -m pydoc magicseg.backends"
        )
    return cast("type[Backend]", backend)


@functools.lru_cache
def _installed(group: str, _path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    """Return the entry points of the packages installed on ``_path``.

    Cached, because a run asks often and each package has its own file of entry points.
    """
    return tuple(entry_points(group=group))


def _package(entry: EntryPoint) -> str:
    """Return the name of the distribution that an entry point belongs to."""
    return entry.dist.name if entry.dist else entry.module


def choose_backend(kind: str, name: str, options: Mapping[str, Any], where: str) -> tuple[type[Backend], Settings]:
    """Return the class of a back end and its validated options.

    Args: where: the settings that choose it, for messages: "mask", or "mask.options.detector".
    Raises: BackendError for an unknown back end, ConfigError for options it does not take.
    """
    try:
        backend = find_backend(kind, name)
    except BackendError as error:
        raise BackendError(
            f"{where}.backend: {error.message}", hint=f"{error.hint}; another one: --set {where}.backend=NAME"
        ) from error
    try:
        return backend, backend.Options.model_validate(options)
    except ValidationError as error:
        # Pydantic's own text quotes the values, and a value may be a secret under a wrong key.
        raise ConfigError(
            f"{where}.options does not fit back end {name!r}: {'; '.join(map(str, faults(error)))}",
            hint=f"its options: {', '.join(backend.Options.model_fields) or 'none'}",
        ) from None


class BackendChoice(Settings):
    """A back end inside the options of another. Its own options are validated, with every default written out."""

    KIND: ClassVar[str]  # "detectors"

    backend: str = Field(description="an installed back end's name")
    options: dict[str, Any] = Field(default_factory=dict, description="the back end's own settings")

    @model_validator(mode="after")
    def _resolved(self) -> Self:
        try:
            _, options = self.chosen()
        except ConfigError as error:  # of which pydantic keeps the message only
            raise ValueError(f"{error.message} ({error.hint})") from None
        values = options.model_dump(mode="json")
        return self if values == self.options else self.model_copy(update={"options": values})

    def chosen(self) -> tuple[type[Backend], Settings]:
        """Return the back end's class and its options. Raises BackendError, ConfigError."""
        return choose_backend(self.KIND, self.backend, self.options, self.KIND.removesuffix("s"))

    def made(self, settings: object) -> Any:
        """Load the back end. Args: settings: the stage settings that it needs. Raises BackendError."""
        backend, options = self.chosen()
        constructor: Any = backend
        try:
            return constructor(settings, options)
        except MagicsegError:
            raise
        except Exception as error:  # foreign code
            raise BackendError(
                f"{self.KIND.removesuffix('s')} {self.backend!r} cannot start: {type(error).__name__}: {error}",
                hint="check its options",
            ) from error


class DetectorChoice(BackendChoice):
    """The choice of a detector."""

    KIND: ClassVar[str] = "detectors"


class SegmenterChoice(BackendChoice):
    """The choice of a segmenter."""

    KIND: ClassVar[str] = "segmenters"


@dataclass(frozen=True)
class NestedBackend:
    """A back end that a group of settings chooses, and its validated options.

    ``path`` is the dotted key of the choice inside the group ("detector", "inpaint.segmenter"). It is empty for the
    back end whose options the group is.
    """

    path: str
    backend: type[Backend]
    options: Settings

    def key(self, option: str) -> str:
        """Return the dotted key of one of its options inside the group."""
        return f"{self.path}.options.{option}" if self.path else option

    def identity(self) -> dict[str, str | int]:
        """Return what the back end says of itself, by dotted keys."""
        prefix = f"{self.path}." if self.path else ""
        return {prefix + key: value for key, value in self.backend.identity(self.options).items()}

    def weights(self) -> tuple[Weights, ...]:
        """Return the pretrained weights that it loads; ``setting`` is their dotted key inside the group.

        Raises BackendError if a path holds no weights of the required kind.
        """
        declared = getattr(self.backend, "weights", None)
        found = declared(self.options) if declared else ()
        return tuple(replace(each, setting=self.key(each.setting)) for each in found)

    def device(self) -> str:
        """Return the device that it computes on: "cuda", "auto" (a GPU if there is one), "cpu" or another name."""
        declared = getattr(self.backend, "device", None)
        return str(declared(self.options) if callable(declared) else getattr(self.options, "device", "cpu"))

    def is_thread_safe(self) -> bool:
        """Return whether two threads may call its batch method at once."""
        return bool(getattr(self.backend, "THREAD_SAFE", False))

    def libraries(self) -> tuple[str, ...]:
        """Return the modules that it imports when it starts."""
        return tuple(getattr(self.backend, "LIBRARIES", ()))


def backends_in(settings: Settings, prefix: str = "") -> Iterator[NestedBackend]:
    """Yield all back ends inside a group of settings, at any depth. Raises BackendError, ConfigError."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, BackendChoice):
            backend, options = value.chosen()
            yield NestedBackend(prefix + name, backend, options)
            yield from backends_in(options, f"{prefix}{name}.options.")
        elif isinstance(value, Settings):
            yield from backends_in(value, f"{prefix}{name}.")


def with_nested(backend: type[Backend], options: Settings) -> tuple[NestedBackend, ...]:
    """Return a back end and all back ends inside its options. Raises BackendError, ConfigError."""
    return (NestedBackend("", backend, options), *backends_in(options))
