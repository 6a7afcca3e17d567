"""The training loop: from samples to a trained segmenter, with checkpoints, a log and an exact resume.

    result = train(samples, vocabulary, settings, out_dir, seed=0, data_fingerprint="...")
    result.status                                   # "finished" or "interrupted"

    out_dir/train.jsonl                             one JSON row per `log_every` steps
    out_dir/checkpoints/step-00001000.safetensors   the newest two
    out_dir/model/{model.json,model.safetensors}    when finished: `magicseg.model.segmenter.load_segmenter`

Calling it again goes on from the newest checkpoint, with the same curve as if it had never stopped; of a
finished run nothing is done again. Every step derives its own randomness from (seed, step): no state is lost.
Many processes share this out (`magicseg.train.distributed`): `Steps` deals each batch to the ranks, the gradients
are averaged, and only rank 0 logs and saves. A checkpoint goes on in any number of processes. The losses' own means
are each rank's, so dice counts the classes of a rank with few of them more than one process would.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from magicseg.errors import ConfigError, IncompleteError
from magicseg.labels import Vocabulary
from magicseg.model.card import read_card
from magicseg.model.losses import counterfactual_loss, dice_loss, focal_loss
from magicseg.model.segmenter import Segmenter, build_segmenter, save_segmenter
from magicseg.model.settings import deciding_settings
from magicseg.model.targets import sample_targets
from magicseg.run.files import write_atomic
from magicseg.train.checkpoints import check_identity, shared_checkpoint, write_checkpoint
from magicseg.train.data import Batch, Mixture, Samples, input_size, training_batches
from magicseg.train.distributed import ALONE, World, agree
from magicseg.train.optim import build_optimizer, learning_rate, set_learning_rate
from magicseg.train.settings import TrainSettings


@dataclass(frozen=True, kw_only=True)
class TrainProgress:
    """Where training is after a step. ``losses``: total and terms (before their weights) of this step.
    ``samples_per_second``: of all processes together.
    """

    step: int
    steps: int
    losses: Mapping[str, float]
    learning_rate: float
    samples_per_second: float


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """``step``: steps done in all; ``seconds``: of this call; ``weights_digest``: None unless finished, and on
    all ranks but the first.
    """

    status: Literal["finished", "interrupted"]
    step: int
    seconds: float
    losses: Mapping[str, float]
    model_dir: Path
    weights_digest: str | None


class LossTerms(nn.Module):
    """The model and its losses as one module, so that one forward call does all (and DDP can wrap it)."""

    def __init__(self, model: Segmenter, vocabulary: Vocabulary, settings: TrainSettings) -> None:
        super().__init__()
        self.model = model
        self.names = vocabulary.names
        self.settings = settings

    def forward(self, batch: Batch, draws: Tensor) -> dict[str, Tensor]:
        """Scalars: ``loss``, the weighted sum, and its terms ``focal``, ``dice``, ``counterfactual``.

        Args: draws: float (B, C), see `magicseg.model.targets.sample_targets`.
        """
        settings = self.settings
        targets = sample_targets(batch.masks, draws, sampled_classes=settings.sampled_classes)
        count = len(batch.images)
        with_counterfactuals = settings.counterfactual_weight > 0
        images = torch.cat([batch.images, batch.counterfactuals]) if with_counterfactuals else batch.images
        cls, patches = self.model.encode_images(images)
        text = self.model.class_texts(self.names)[targets.classes]
        height, width = batch.images.shape[-2:]
        logits = self.model.decode(cls[:count], patches[:count], text, (height, width))
        terms = {
            "focal": focal_loss(
                logits, targets.masks, targets.valid, alpha=settings.focal_alpha, gamma=settings.focal_gamma
            ),
            "dice": dice_loss(logits, targets.masks, targets.valid, targets.present),
        }
        loss = settings.focal_weight * terms["focal"] + settings.dice_weight * terms["dice"]
        if with_counterfactuals:
            terms["counterfactual"] = counterfactual_loss(cls[:count].float(), cls[count:].float())
            loss = loss + settings.counterfactual_weight * terms["counterfactual"]
        return {"loss": loss, **terms}


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
    provenance: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train, or go on training, a segmenter.

    Args:
        data_fingerprint: names the samples; a checkpoint made with others is refused.
        world: the processes that train together, joined already; each calls this with the same arguments.
        progress: called after every step.
        stop: asked in every step; when it says yes in any process, a checkpoint is written after that step and
            training returns in all of them.
        provenance: written into the finished model's ``model.json``.

    Raises:
        PlanMismatch: the newest checkpoint was made with other settings, samples, classes or seed.
        IncompleteError: a loss is not a finite number.
        ConfigError: the images do not fit the encoder, or the batch cannot be dealt out evenly.
        StoreError, DataError: something cannot be written or read.
    """
    started = time.perf_counter()
    if settings.cpu_threads:
        torch.set_num_threads(settings.cpu_threads)
    if settings.batch_size % world.size:
        raise ConfigError(
            f"train.batch_size is {settings.batch_size}, which {world.size} processes cannot share evenly",
            hint=f"set train.batch_size={-(-settings.batch_size // world.size) * world.size}, "
            "or start a number of processes that divides it",
        )
    identity = {
        "data": data_fingerprint,
        "seed": seed,
        "classes": list(vocabulary.names),
        "train": deciding_settings(settings),
    }
    folder, model_dir = out_dir / "checkpoints", out_dir / "model"
    model = build_segmenter(settings.model, seed=seed).to(device).train()
    side = input_size(samples, settings)
    if side % model.stride:
        raise ConfigError(f"images of {side} pixels are no multiple of the encoder's stride ({model.stride})")
    optimizer = build_optimizer(model, settings)
    checkpoint = shared_checkpoint(folder, world)
    start, sums = 0, dict[str, float]()
    if checkpoint is not None:
        check_identity(checkpoint, identity)
        checkpoint.restore(model, optimizer)
        start, sums = checkpoint.step, dict(checkpoint.sums)
    log = _Log(out_dir / "train.jsonl", done=start) if world.leads else None
    batches = training_batches(
        samples,
        settings,
        batch_size=settings.batch_size,
        start=start,
        stop=settings.steps,
        seed=seed,
        world=world,
        pin_memory=torch.device(device).type == "cuda",
    )
    terms: nn.Module = LossTerms(model, vocabulary, settings)
    if world.size > 1:
        terms = _distributed(terms)
    step = partial(
        _step,
        terms,
        optimizer,
        settings=settings,
        classes=len(vocabulary.names),
        seed=seed,
        device=device,
        world=world,
    )
    losses: dict[str, float] = {}
    done, saved, clock, since = start, start, time.perf_counter(), 0

    def save() -> None:
        nonlocal saved
        if world.leads:
            write_checkpoint(folder, model, optimizer, step=done, identity=identity, sums=sums)
        saved = done

    with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
        for batch in batches:
            rate = learning_rate(done, settings)
            set_learning_rate(optimizer, rate)
            losses, stopping = step(batch, step=done, stop=stop is not None and stop())
            done += 1
            since += settings.batch_size
            speed = since / max(time.perf_counter() - clock, 1e-9)
            sums = {name: sums.get(name, 0.0) + value for name, value in losses.items()}
            if done % settings.log_every == 0 or done == settings.steps:
                if log is not None:
                    span = (done - 1) % settings.log_every + 1
                    log.write(step=done, sums=sums, steps=span, rate=rate, speed=speed)
                sums, clock, since = {}, time.perf_counter(), 0
            if done % settings.checkpoint_every == 0 or done == settings.steps:
                save()
            if progress is not None:
                progress(
                    TrainProgress(
                        step=done,
                        steps=settings.steps,
                        losses=losses,
                        learning_rate=rate,
                        samples_per_second=speed,
                    )
                )
            if stopping and done < settings.steps:
                if saved != done:
                    save()
                break
    digest = None
    if done == settings.steps and world.leads:
        digest = _save_once(model, model_dir, identity=identity, provenance=provenance)
    return TrainResult(
        status="finished" if done == settings.steps else "interrupted",
        step=done,
        seconds=time.perf_counter() - started,
        losses=losses,
        model_dir=model_dir,
        weights_digest=digest,
    )


def _distributed(terms: nn.Module) -> DistributedDataParallel:
    """``terms`` with its gradients averaged over all ranks, in the same order of addition in every step.

    DDP would lay its buckets out anew after the first step, and so also after a resume, whose curve would then
    differ in the last bits; looking for unused parameters, of which there are none, keeps it from that.
    """
    return DistributedDataParallel(terms, find_unused_parameters=True)


def _step(
    terms: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    *,
    settings: TrainSettings,
    classes: int,
    seed: int,
    step: int,
    device: str,
    world: World,
    stop: bool,
) -> tuple[dict[str, float], bool]:
    """One step of the optimiser. All its randomness comes from (seed, step), and dropout's from the rank too.

    Args: classes: in the vocabulary. stop: whether this process wants this step to be the last.
    Returns: the losses, means over all processes, and whether any wants to stop.
    Raises: IncompleteError when the loss of any is not finite; the weights are then as before.
    """
    words = np.random.SeedSequence((seed, step)).generate_state(2, np.uint64)
    torch.manual_seed(int(words[0]) ^ world.rank)
    # Drawn for the whole batch: which classes an image is asked for does not depend on the number of processes.
    draws = torch.rand(settings.batch_size, classes, generator=torch.Generator().manual_seed(int(words[1])))
    on_device = Batch(*(tensor.to(device, non_blocking=True) for tensor in batch))
    losses = terms(on_device, draws[world.rank :: world.size].to(device))
    values, stopping = agree(world, losses, stop=stop)
    if not math.isfinite(values["loss"]):
        raise IncompleteError(
            f"the loss of step {step + 1} is not a finite number: {values}",
            hint="lower train.learning_rate or set train.gradient_clip=1.0, then train anew; "
            "if it happens at once, look at the data with `magicseg report RUN`",
        )
    optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    if settings.gradient_clip:
        nn.utils.clip_grad_norm_(terms.parameters(), settings.gradient_clip)
    optimizer.step()
    return values, stopping


class _Log:
    """``train.jsonl``. Rows after the step that training goes on from are taken back."""

    def __init__(self, path: Path, *, done: int) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= done]
        if kept != lines:
            write_atomic(path, b"".join(kept))

    def write(self, *, step: int, sums: Mapping[str, float], steps: int, rate: float, speed: float) -> None:
        """One row: the mean losses of the latest ``steps`` steps."""
        row = {
            "step": step,
            **{name: value / steps for name, value in sums.items()},
            "learning_rate": rate,
            "samples_per_second": round(speed, 2),
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _save_once(
    model: Segmenter, model_dir: Path, *, identity: Mapping[str, Any], provenance: Mapping[str, Any] | None
) -> str:
    """Save the finished model, unless it is there from an earlier call."""
    if (model_dir / "model.json").exists():
        card = read_card(model_dir)
        if card["provenance"].get("training") == identity:
            return str(card["weights_digest"])
    return save_segmenter(model, model_dir, provenance={**(provenance or {}), "training": identity})
