"""The training loop: from samples to a trained segmenter, with checkpoints, a log and an exact resume.

    result = train(samples, vocabulary, settings, out_dir, seed=0, data_fingerprint="...")
    result.status                                   # "finished" or "interrupted"

    out_dir/train.jsonl                             one JSON row per `log_every` steps
    out_dir/checkpoints/step-00001000.safetensors   the newest two
    out_dir/model/{model.json,model.safetensors}    when finished: `magicseg.model.load_segmenter`

A second call resumes from the newest checkpoint, with the same curve as if training had never stopped. It does
nothing if training has finished. Every step derives its randomness from (seed, step), so no random state is lost.

On several ranks (`magicseg.core.distributed`) each batch is sharded by `magicseg.data.sampler.Steps`, losses are
means over all ranks, gradients are averaged, and only rank 0 logs and saves. A checkpoint can be resumed on any
number of ranks. A step's numbers are read one step later (`magicseg.train.deferred_metrics`), so no step waits for
the device.
"""

import contextlib
import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from magicseg.config.model import deciding_settings
from magicseg.config.training import TrainSettings
from magicseg.core.distributed import ALONE, World, broadcast_from_rank_0
from magicseg.core.errors import ConfigError, RunError
from magicseg.data.dataset import Mixture, Samples, input_size
from magicseg.data.loader import ReadersLost, training_batches
from magicseg.labels import Vocabulary
from magicseg.model.card import read_card
from magicseg.model.saved_model import save_segmenter
from magicseg.model.segmenter import Segmenter, build_segmenter
from magicseg.run.claims import STALE_SECONDS, holder, try_claim
from magicseg.train.checkpoints import check_identity, differences, gather, shared_checkpoint, write_checkpoint
from magicseg.train.deferred_metrics import Late, Outcome
from magicseg.train.log import Log
from magicseg.train.optimizer import learning_rate, set_learning_rate
from magicseg.train.sharding import is_sharded, whole
from magicseg.train.step import Stepper

Evaluate = Callable[[Segmenter, int], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """The state after a step. ``losses``: this step's total, and its terms before their weights.

    ``samples_per_second``: over all ranks.
    """

    step: int
    steps: int
    losses: Mapping[str, float]
    learning_rate: float
    samples_per_second: float


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The end of one call of `train`.

    ``step``: steps done in all calls. ``seconds``: of this call. ``losses``: of the last step. ``weights_digest``:
    of the saved model, on rank 0 if training has finished; else None.
    """

    status: Literal["finished", "interrupted"]
    step: int
    seconds: float
    losses: Mapping[str, float]
    model_dir: Path
    weights_digest: str | None


def train(
    samples: Samples | Mixture,
    vocabulary: Vocabulary,
    settings: TrainSettings,
    out_dir: Path,
    *,
    seed: int,
    data_fingerprint: str,
    device: str = "cpu",
    world: World = ALONE,
    progress: Callable[[TrainProgress], None] | None = None,
    stop: Callable[[], bool] | None = None,
    evaluate: Evaluate | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train a segmenter, or resume its training.

    Args:
        data_fingerprint: identifies the samples; a checkpoint made with another one is refused.
        world: the ranks, which have joined the process group. Each calls this with the same arguments.
        progress: called for every step, after the next one has begun.
        stop: called in every step. After it returns True on any rank, one more step follows; then a checkpoint is
            written and training returns on all ranks.
        evaluate: called on all ranks after every ``evaluate_every`` steps with a copy of the model, in inference
            mode, and the step. It may change the copy. Rank 0's numbers go into the log, and the checkpoint of the
            step with the largest first number is kept.
        provenance: written into the finished model's ``model.json``.

    Raises:
        PlanMismatch: the newest checkpoint was made with other settings, samples, classes or seed.
        RunError: another process is training in this folder.
        IncompleteError: a loss or a gradient is not finite.
        ConfigError: the images do not fit the encoder, or the batch cannot be sharded evenly.
        DataError: masks hold classes that the vocabulary lacks, or a file cannot be read.
        BackendError: a library for the log is missing, or the model cannot be compiled.
        ReadersLost: a reader process ended or hangs.
        StoreError: a file cannot be written or read.
    """
    started = time.perf_counter()
    if settings.cpu_threads:
        torch.set_num_threads(settings.cpu_threads)
    _check_parts(settings, world)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_claimed(out_dir / "checkpoints", world))
        training = _Training(
            samples,
            vocabulary,
            settings,
            out_dir,
            seed=seed,
            data_fingerprint=data_fingerprint,
            device=torch.device(device),
            world=world,
            evaluate=evaluate,
            progress=progress,
            stop=stop,
        )
        if training.log is not None:
            stack.callback(training.log.close)
        stack.enter_context(_own_random_numbers(training.device))
        training.run()
        model_dir, digest = out_dir / "model", None
        finished = training.done == settings.steps
        if finished:
            model = training.current_model()
            if world.is_rank_0:
                digest = _save_once(model, model_dir, identity=training.identity, provenance=provenance)
    return TrainResult(
        status="finished" if finished else "interrupted",
        step=training.done,
        seconds=time.perf_counter() - started,
        losses=training.losses,
        model_dir=model_dir,
        weights_digest=digest,
    )


class _Training:
    """One call of `train`: its objects and its progress."""

    def __init__(
        self,
        samples: Samples | Mixture,
        vocabulary: Vocabulary,
        settings: TrainSettings,
        out_dir: Path,
        *,
        seed: int,
        data_fingerprint: str,
        device: torch.device,
        world: World,
        evaluate: Evaluate | None,
        progress: Callable[[TrainProgress], None] | None,
        stop: Callable[[], bool] | None,
    ) -> None:
        self.settings, self.device, self.world = settings, device, world
        self._folder = out_dir / "checkpoints"
        self._stop = stop
        self._evaluate = evaluate
        self._progress = progress
        self.identity = {
            "data": data_fingerprint,
            "seed": seed,
            "classes": list(vocabulary.names),
            "train": deciding_settings(settings),
        }
        model = build_segmenter(settings.model, seed=seed).to(device).train()
        side = input_size(samples, settings)
        if side % model.stride:
            raise ConfigError(f"images of {side} pixels are not a multiple of the encoder's stride ({model.stride})")
        model.check_classes(vocabulary.names)
        model.checkpoint_activations = settings.checkpoint_activations
        # A sharded model cannot be copied, so an unsharded copy is made before.
        self._form = copy.deepcopy(model).cpu() if is_sharded(settings, world) else None
        self.stepper = Stepper(
            model,
            vocabulary,
            settings,
            seed=seed,
            device=device,
            world=world,
            allowed=samples.allowed,
            validated=Mixture.of(samples).validated,
        )
        self.done, self._sums = 0, dict[str, float]()
        self._best: tuple[int, float] | None = None
        checkpoint = shared_checkpoint(self._folder, world)
        if checkpoint is not None:
            check_identity(checkpoint, self.identity)
            checkpoint.restore(self.stepper)
            self.done, self._sums, self._best = checkpoint.step, dict(checkpoint.sums), checkpoint.best
        self.losses: Mapping[str, float] = {}
        self.log = Log(out_dir, settings, done=self.done, identity=self.identity) if world.is_rank_0 else None
        self._clock, self._since = time.perf_counter(), 0
        self._batches = training_batches(
            samples,
            settings,
            batch_size=settings.batch_size,
            start=self.done,
            stop=settings.steps,
            seed=seed,
            world=world,
            pin_memory=device.type == "cuda",
            should_stop=stop,
        )

    def run(self) -> None:
        """Train all remaining steps, or until a stop is requested.

        Raises: ReadersLost; a process that trains alone writes a checkpoint first. On several ranks that is not
        possible, because the others would have to take part.
        """
        late = Late()
        try:
            self._run(late)
        except ReadersLost:
            now = late.flush()
            if now is not None:
                self._tell(now)
                if self.world.size == 1:
                    self._save()
            raise

    def _run(self, late: Late) -> None:
        settings, stop = self.settings, self._stop
        for batch in self._batches:
            rate = learning_rate(self.done, settings)
            set_learning_rate(self.stepper.optimizer, self.done, settings)
            report = self.stepper(batch, step=self.done, stop=stop is not None and stop())
            self.done += 1
            before = late.push(report, step=self.done, rate=rate)
            stopping = before is not None and before.stop
            if before is not None:
                self._tell(before)
            last = stopping or self.done == settings.steps
            evaluated = self._evaluate is not None and _is_due(self.done, settings.evaluate_every)
            if last or evaluated or self.done % settings.checkpoint_every == 0:
                now = late.flush()  # raises if the step failed, before its weights are evaluated or saved
                assert now is not None
                began = time.perf_counter()
                results = self._evaluation() if evaluated else None
                took = time.perf_counter() - began
                self._tell(now, results)
                self._clock += took  # evaluation does not count in samples_per_second
                is_best = self._best is not None and self._best[0] == self.done
                if last or is_best or self.done % settings.checkpoint_every == 0:
                    self._save()
            if last:
                return

    def current_model(self) -> Segmenter:
        """Return an unsharded copy of the model as it would be saved now, in inference mode. All ranks call this."""
        state = self.stepper.model.state_dict()
        if self.stepper.ema is not None:
            state = self.stepper.ema.over(state)
        model = copy.deepcopy(self._form or self.stepper.model).to(self.device)
        with torch.no_grad():
            for name, value in model.state_dict().items():
                value.copy_(whole(state[name]).reshape(value.shape))
        return model.eval()

    def _evaluation(self) -> dict[str, float]:
        """Return the evaluation's numbers; update `_best` if the first is the largest so far."""
        assert self._evaluate is not None
        with _own_random_numbers(self.device), torch.no_grad():
            results = dict(self._evaluate(self.current_model(), self.done))
        value = broadcast_from_rank_0(self.world, next(iter(results.values()), math.nan))
        if not math.isnan(value) and (self._best is None or value > self._best[1]):
            self._best = self.done, value
        return results

    def _tell(self, outcome: Outcome, results: Mapping[str, float] | None = None) -> None:
        """Write a log row if one is due, and call ``progress``."""
        settings, step = self.settings, outcome.step
        self.losses = outcome.losses
        self._since += settings.batch_size
        speed = self._since / max(outcome.at - self._clock, 1e-9)
        self._sums = {name: self._sums.get(name, 0.0) + value for name, value in outcome.losses.items()}
        due = step % settings.log_every == 0 or step == settings.steps
        if self.log is not None and (due or results):
            span = (step - 1) % settings.log_every + 1
            self.log.write(
                {
                    "step": step,
                    **{name: total / span for name, total in self._sums.items()},
                    "gradient_norm": outcome.norm,
                    "learning_rate": outcome.rate,
                    "samples_per_second": round(speed, 2),
                    **({"loss_scale": outcome.scale} if settings.precision == "fp16" else {}),
                    **({"evaluation": results} if results else {}),
                }
            )
        if due:
            self._sums, self._clock, self._since = {}, outcome.at, 0
        if self._progress is not None:
            self._progress(
                TrainProgress(
                    step=step,
                    steps=settings.steps,
                    losses=outcome.losses,
                    learning_rate=outcome.rate,
                    samples_per_second=speed,
                )
            )

    def _save(self) -> None:
        tensors = gather(self.stepper, self.world)
        if self.world.is_rank_0:
            write_checkpoint(
                self._folder,
                tensors,
                step=self.done,
                identity=self.identity,
                sums=self._sums,
                best=self._best,
                scaler=self.stepper.scaler.state_dict(),
                settings=self.settings,
            )


def _check_parts(settings: TrainSettings, world: World) -> None:
    parts = world.size * settings.accumulate
    if settings.batch_size % parts:
        shared = f"{world.size} ranks" if settings.accumulate == 1 else f"{world.size} x {settings.accumulate} parts"
        raise ConfigError(
            f"train.batch_size is {settings.batch_size}, which {shared} cannot divide evenly",
            hint=f"set train.batch_size={-(-settings.batch_size // parts) * parts}, "
            "or start a number of ranks that divides it",
        )


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


@contextlib.contextmanager
def _claimed(folder: Path, world: World) -> Iterator[None]:
    """Claim the folder: two trainings would overwrite each other's checkpoints and mix their logs.

    It is a claim file and not the operating system's lock, which many network file systems ignore or refuse.
    """
    path = folder / "training.claim"
    claim = None
    if world.is_rank_0:
        folder.mkdir(parents=True, exist_ok=True)
        claim = try_claim(path)
    if not broadcast_from_rank_0(world, float(claim is not None)):
        raise RunError(
            f"{folder.parent}: {holder(path)} is already training here",
            hint=f"wait for it or stop it; if its machine has failed, the claim expires {STALE_SECONDS:.0f} s later",
        )
    with claim or contextlib.nullcontext():
        yield


def _own_random_numbers(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Restore torch's global generators at the end."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _save_once(
    model: Segmenter, model_dir: Path, *, identity: Mapping[str, Any], provenance: Mapping[str, Any] | None
) -> str:
    """Save the finished model unless an earlier call has; return its weights' digest."""
    if (model_dir / "model.json").exists():
        card = read_card(model_dir)
        training = card["provenance"].get("training")
        if isinstance(training, Mapping) and not differences(training, identity):
            return str(card["weights_digest"])
    return save_segmenter(model, model_dir, provenance={**(provenance or {}), "training": identity})
