"""Training for `gpu.py`: the training loop with its readers, against forward, backward and the optimiser alone.

The training loop runs in a second thread. After each step it waits until another one is asked for, so that both loops
take turns within one training.
"""

import contextlib
import queue
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_measure import BASELINE, Clock, Variant, counted_flops, library_defaults
from scenes import commit_all, make_run, triples, write_store
from train_step import Bare

from magicseg.config.loading import load_config
from magicseg.config.model import OpenClipSettings
from magicseg.config.training import TrainSettings
from magicseg.data.kept_samples import KeptSamples
from magicseg.model.segmenter import build_segmenter
from magicseg.run import Run
from magicseg.train.loop import TrainProgress, train
from magicseg.train.step import ModelWithLosses

_MANY_STEPS = 1_000_000  # training ends when it is told to
_Task = Generator[None, None, None]  # runs in the training thread; yields to have one more step done


@dataclass
class TrainWorkload:
    """CLIP ViT-B/16 at 512 px with 100 queried classes in bf16, as in the preset ``sdxl`` but for the precision."""

    tiny: bool
    device: str
    name: str = "train"
    unit: str = "images/s"
    gigabytes: float = 1

    @property
    def dtype(self) -> str:
        """The dtype of matrix products with the default settings."""
        return "bfloat16"

    @property
    def title(self) -> str:
        """The sizes, for the table's head."""
        settings = self.settings(BASELINE)
        return (
            f"{settings.batch_size} images of {64 if self.tiny else 512} px and as many counterfactuals, "
            f"{settings.sampled_classes} classes, {settings.precision}, {settings.loader_workers} readers"
        )

    @property
    def variants(self) -> Sequence[Variant]:
        """What changes speed or memory."""
        return [
            BASELINE,
            Variant("compile", "exact", {"compile": True}, compile_seconds=60.0),
            Variant("precision fp32", "exact", {"precision": "fp32"}),
            Variant("checkpoint_activations", "exact", {"checkpoint_activations": True}),
            Variant("class_chunk", "exact", {"class_chunk": 4 if self.tiny else 25}),
        ]

    def settings(self, variant: Variant) -> TrainSettings:
        """Return the settings of a variant."""
        values: dict[str, Any] = {"precision": "bf16", "steps": _MANY_STEPS, "checkpoint_every": _MANY_STEPS}
        if self.tiny:
            values["batch_size"] = 4
        else:
            architecture = "ViT-B-16-quickgelu"
            encoder = OpenClipSettings(name="open-clip", architecture=architecture, weights=None, image_size=512)
            values |= {"encoder": encoder, "loader_workers": 8}
        preset = load_config(preset="painted" if self.tiny else "sdxl").train
        return preset.model_copy(update=values | dict(variant.settings))

    def write(self, folder: Path) -> None:
        """Write a run with images and masks."""
        self.folder = folder
        self._opened = 0
        vocabulary = "miniature" if self.tiny else "lvis1203"
        scenes = list(triples(64, 64 if self.tiny else 512, None))
        self.run = make_run(folder / "run", scenes, codec="jpeg", shard_size=16, vocabulary=vocabulary)
        write_store(self.run, scenes)
        commit_all(self.run)

    @contextlib.contextmanager
    def opened(self, variant: Variant) -> Iterator["_TrainLoops"]:
        """Start a training, and end it."""
        self._opened += 1
        out = self.folder / f"training-{self._opened}"
        loops = _TrainLoops(self.run, self.settings(variant), self.device, out, counted=4 if self.tiny else 20)
        try:
            yield loops
        finally:
            loops.close()


class _TrainLoops:
    def __init__(self, run: Run, settings: TrainSettings, device: str, out: Path, *, counted: int) -> None:
        self._run, self._settings, self._device, self._out = run, settings, device, out
        self._samples = KeptSamples.of(run)
        self._counted = counted
        # What the readers fetched while the training waited does not count.
        self._uncounted = 1 + 2 * max(1, settings.loader_workers)
        self._bare: Bare | None = None
        self._tasks: queue.Queue[_Task] = queue.Queue()
        self._ends: queue.Queue[BaseException | None] = queue.Queue()  # one for each task
        self._task: _Task | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._train, name="training", daemon=True)
        self._thread.start()

    def warm_up(self) -> None:
        """Do a few steps."""
        self._do(self._steps(None))

    def stage(self, clock: Clock) -> int:
        """Let the training loop go on for a turn."""
        self._do(self._steps(clock))
        return self._counted * self._settings.batch_size

    def bare(self, clock: Clock) -> int:
        """Do as many steps on one batch in memory."""
        self._do(self._bare_steps(clock))
        return self._counted * self._settings.batch_size

    def flops(self) -> float:
        """Count one step."""
        found: list[float] = []

        def count() -> _Task:
            found.append(counted_flops(self._bare_loop().step))
            yield from ()

        self._do(count())
        return found[0] / self._settings.batch_size

    def remark(self) -> str:
        """Nothing."""
        return ""

    def close(self) -> None:
        """End the training. It writes its last checkpoint."""
        self._closing = True
        self._tasks.put(_nothing())
        self._thread.join()

    def _do(self, task: _Task) -> None:
        """Have the training thread do a task. Raises what it raises."""
        self._tasks.put(task)
        end = self._ends.get()
        if end is not None:
            raise end

    def _train(self) -> None:
        try:
            train(
                self._samples,
                self._run.vocabulary,
                self._settings,
                self._out,
                seed=0,
                data_fingerprint="",
                device=self._device,
                progress=self._after_step,
                stop=lambda: self._closing,
            )
        except BaseException as error:  # the other thread raises it
            self._ends.put(error)

    def _after_step(self, _state: TrainProgress) -> None:
        """Go on with the present task, or wait for the next, until one asks for another step."""
        while not self._closing:
            self._task = self._task or self._tasks.get()
            try:
                next(self._task)
            except StopIteration:
                self._end(None)
            except BaseException as error:
                self._end(error)
            else:
                return

    def _end(self, error: BaseException | None) -> None:
        self._task = None
        self._ends.put(error)

    def _steps(self, clock: Clock | None) -> _Task:
        for _ in range(self._uncounted):
            yield
        with clock or contextlib.nullcontext():
            for _ in range(self._counted if clock else 0):
                yield

    def _bare_steps(self, clock: Clock) -> _Task:
        bare = self._bare_loop()
        with library_defaults(), clock:
            for _ in range(self._counted):
                bare.step()
        yield from ()

    def _bare_loop(self) -> Bare:
        if self._bare is None:
            model = build_segmenter(self._settings.model, seed=0).to(self._device).train()
            model.checkpoint_activations = self._settings.checkpoint_activations
            module = ModelWithLosses(model, self._run.vocabulary, self._settings)
            if self._settings.compile:
                module.compile()
            self._bare = Bare(self._samples, module)
            self._bare.step()
        return self._bare


def _nothing() -> _Task:
    yield from ()


def train_workloads(device: str, *, tiny: bool) -> list[TrainWorkload]:
    """Return the training."""
    return [TrainWorkload(tiny, device)]
