"""Benchmarks with their data sets opened: files on disk, a run's held-out pairs, or painted scenes."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from magicseg.config.evaluation import MINIATURE, OWN_MASKS, EvaluateSettings
from magicseg.core.errors import ConfigError, DataError
from magicseg.core.text import command
from magicseg.data.ground_truth import DataSet, data_folder, open_data_set
from magicseg.data.held_out_pairs import HeldOutPairs
from magicseg.data.labelled_images import LabelledImages
from magicseg.data.protocol import load_protocol
from magicseg.evaluate.model_under_test import Target
from magicseg.evaluate.sweep import tuning_set_or_reason
from magicseg.miniature.held_out_scenes import PaintedScenes, undrawn


@dataclass(frozen=True)
class OpenBenchmark:
    """A benchmark whose data set has been opened."""

    data: DataSet | HeldOutPairs | PaintedScenes
    settings: EvaluateSettings

    @property
    def name(self) -> str:
        """The name of the results."""
        return self.data.protocol.name

    @property
    def limit(self) -> int | None:
        """How many images are scored, at most."""
        return None if isinstance(self.data, PaintedScenes) else self.settings.limit

    @property
    def sweep_images(self) -> int | None:
        """How many images a threshold is swept on, at most."""
        return None if isinstance(self.data, PaintedScenes) else self.settings.sweep_images

    @cached_property
    def tuning(self) -> LabelledImages | str:
        """Return the images for the threshold sweep, or the reason why the benchmark has no such images."""
        if isinstance(self.data, PaintedScenes):
            return self.data.others()
        if isinstance(self.data, HeldOutPairs):
            return "a run's own masks are no ground truth to choose it on"
        if not self.settings.sweep_images:
            return "evaluate.sweep_images is 0"
        return tuning_set_or_reason(self.data.protocol, self.data.folder)

    def is_swept(self, head: str) -> bool:
        """Return whether a head's threshold is swept. On painted scenes, models trained on such scenes keep 0.5."""
        from magicseg.evaluate.painted_benchmark import UNTUNED

        return not isinstance(self.data, PaintedScenes) or head not in UNTUNED


def open_benchmarks(settings: EvaluateSettings, target: Target) -> tuple[OpenBenchmark, ...]:
    """Open the data sets of all benchmarks of the settings, the miniature first, the others in their order.

    Raises: ConfigError for an unknown benchmark, or if its data are not named; DataError if files are missing.
    """
    names = sorted(dict.fromkeys(settings.benchmarks), key=lambda name: name != MINIATURE)
    return tuple(OpenBenchmark(_opened(name, settings, target), settings) for name in names)


def _opened(name: str, settings: EvaluateSettings, target: Target) -> DataSet | HeldOutPairs | PaintedScenes:
    if name == MINIATURE:
        return _scenes(target, settings)
    return _held_out_pairs(target) if name == OWN_MASKS else _data_set(name, settings)


def _held_out_pairs(target: Target) -> HeldOutPairs:
    """Open the pairs that the model was not trained on. Raises: DataError if it was trained with other settings."""
    run = target.run
    if run is None:
        raise ConfigError(
            f"{target.path}: the benchmark {OWN_MASKS} is of a run's own pairs, and this is a model",
            hint="magicseg evaluate RUN, or --benchmark NAME --data DIR",
        )
    trained, now = target.provenance["train"] or {}, run.config.train
    for key in ("held_out", "duplicate_bits"):
        was, value = trained.get(key, type(now).model_fields[key].default), getattr(now, key)
        if was != value:
            raise DataError(
                f"{run.path}: train.{key} is {value}, but the model was trained with {was}: it may have seen the "
                "pairs that are held out now",
                hint=f"set it back, or: {command('magicseg', 'reset', 'train', run.path)}",
            )
    return HeldOutPairs.of(run)


def _scenes(target: Target, settings: EvaluateSettings) -> PaintedScenes:
    run = target.run
    if run is None:
        raise ConfigError(
            f"{target.path}: the benchmark {MINIATURE} is of a run's own vocabulary, and this is a model",
            hint="magicseg evaluate RUN, or --benchmark NAME --data DIR",
        )
    unknown = undrawn(run.vocabulary)
    if unknown:
        raise ConfigError(
            f"{target.path}: the benchmark {MINIATURE} has painted scenes, and the painter has no "
            f"drawing of {', '.join(map(repr, unknown[:3]))}",
            hint="--benchmark voc21 --data DIR, or set evaluate.benchmarks and evaluate.data",
        )
    return PaintedScenes.of(run.vocabulary, settings, seed=run.config.seed, size=run.config.generate.size)


def _data_set(name: str, settings: EvaluateSettings) -> DataSet:
    protocol = load_protocol(name)
    if settings.background is not None and protocol.counts_background:
        protocol = protocol.with_background(settings.background)
    if settings.data is None:
        raise ConfigError(f"{name}: where are its data?", hint=f"--data DIR; {protocol.origin}")
    return open_data_set(protocol, data_folder(protocol, Path(settings.data)))
