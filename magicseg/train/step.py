"""One step of training: targets, losses, gradients, and an update that is left out where anything is not finite.

Nothing here waits for the device. What a step found (`Outcome`) is a small tensor of all processes together, read
when it has arrived: see `magicseg.train.deferred_metrics`.
"""

import contextlib
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from magicseg.config.training import TrainSettings
from magicseg.core.distributed import World, added_up
from magicseg.core.errors import BackendError
from magicseg.data.dataset import Batch
from magicseg.labels import Vocabulary
from magicseg.model.losses import counterfactual_loss, dice_loss, focal_loss, mean_counts, true_pairs
from magicseg.model.segmenter import Segmenter
from magicseg.model.targets import Targets, sample_targets
from magicseg.train.ema import Ema
from magicseg.train.optim import build_optimizer
from magicseg.train.sharding import is_sharded, replicate, shard, whole

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LEAST_SCALE = 2.0**-24  # of fp16's gradients: what overflows at this scale is no matter of scale


class LossTerms(nn.Module):
    """The model and its losses as one module, so that one forward call does all (and DDP or FSDP can wrap it)."""

    def __init__(self, model: Segmenter, vocabulary: Vocabulary, settings: TrainSettings) -> None:
        super().__init__()
        self.model = model
        self.names = vocabulary.names
        self.settings = settings

    def forward(self, batch: Batch, targets: Targets, counts: Tensor) -> dict[str, Tensor]:
        """Scalars: ``loss``, the weighted sum, and its terms ``focal``, ``dice``, ``counterfactual``,
        ``deep_supervision``: this part's share of the means of a whole.

        Args: counts: (3,), `magicseg.model.losses.mean_counts` of the whole.
        """
        settings = self.settings
        count = len(batch.images)
        with_counterfactuals = settings.counterfactual_weight > 0
        images = torch.cat([batch.images, batch.counterfactuals]) if with_counterfactuals else batch.images
        height, width = batch.images.shape[-2:]
        with torch.autocast(
            images.device.type, dtype=_DTYPES[settings.precision], enabled=settings.precision != "fp32"
        ):
            cls, patches = self.model.encode_images(images)
            text = _class_texts(self.model, self.names)[targets.classes]
            seen = cls[:count], patches[:count], text, (height, width)
            if settings.deep_supervision_weight > 0:
                *earlier, logits = self.model.decode(*seen, every_layer=True)
            else:
                earlier, logits = [], self.model.decode(*seen)
        masks = targets.masks
        focal, dice = self._mask_losses(logits, masks, targets, counts)
        terms = {"focal": focal, "dice": dice}
        loss = settings.focal_weight * focal + settings.dice_weight * dice
        if with_counterfactuals:
            pairs = true_pairs(targets, batch.paired)
            terms["counterfactual"] = counterfactual_loss(
                cls[:count].float(), cls[count:].float(), pairs, count=counts[2]
            )
            loss = loss + settings.counterfactual_weight * terms["counterfactual"]
        if earlier:
            losses = [self._mask_losses(layer, masks, targets, counts) for layer in earlier]
            weighted = [settings.focal_weight * focal + settings.dice_weight * dice for focal, dice in losses]
            terms["deep_supervision"] = torch.stack(weighted).sum()
            loss = loss + settings.deep_supervision_weight * terms["deep_supervision"]
        return {"loss": loss, **terms}

    def _mask_losses(self, logits: Tensor, masks: Tensor, targets: Targets, counts: Tensor) -> tuple[Tensor, Tensor]:
        settings = self.settings
        focal = focal_loss(
            logits,
            masks,
            targets.valid,
            alpha=settings.focal_alpha,
            gamma=settings.focal_gamma,
            asked=targets.asked,
            count=counts[0],
        )
        return focal, dice_loss(logits, masks, targets.valid, targets.present, count=counts[1])


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _class_texts(model: Segmenter, names: tuple[str, ...]) -> Tensor:
    """The embeddings of all classes (C, D). Their text processing is nothing that a compiler could make faster."""
    return model.class_texts(names)


class Stepper:
    """All that changes in training, and how one step changes it: ``model``, ``optimizer``, ``ema``, ``scaler``.
    ``shapes``: of the model's tensors, when whole.

    A step fails when its loss is not finite in any process, when a gradient is not (in fp16: when no scale makes it
    so), or when masks hold unknown classes. From then on the weights stay as they were before that step, in all
    processes, until somebody reads that it failed. This costs no waiting, because the optimiser's own kernel looks at
    ``found_inf``, as it does for torch's ``GradScaler``.
    """

    def __init__(
        self,
        model: Segmenter,
        vocabulary: Vocabulary,
        settings: TrainSettings,
        *,
        seed: int,
        device: torch.device,
        world: World,
        allowed: NDArray[np.bool_] | None,
    ) -> None:
        self.model = model
        self._settings = settings
        self._seed = seed
        self._device = device
        self._world = world
        self._classes = len(vocabulary.names)
        self._allowed = None if allowed is None else torch.from_numpy(allowed).to(device)
        terms = LossTerms(model, vocabulary, settings)
        self.shapes = {name: value.shape for name, value in model.state_dict().items()}
        self.sharded = is_sharded(settings, world)
        if self.sharded:
            shard(terms, cast("nn.Module", model.encoder), world)
        if settings.compile:
            terms.compile()
        self._terms = replicate(terms) if world.size > 1 and not self.sharded else terms
        self.optimizer = build_optimizer(model, settings)
        self.optimizer.register_step_pre_hook(self._skip_failed)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.ema = Ema(model, settings.ema_decay) if settings.ema_decay is not None else None
        self._failed = torch.zeros((), dtype=torch.float64, device=device)
        self.names: tuple[str, ...] = ()

    def __call__(self, batch: Batch, *, step: int, stop: bool) -> Tensor:
        """One step. All its randomness comes from (seed, step), and dropout's from the rank too.

        Args: batch: this process's share. step: from 0. stop: whether this process wants training to end.
        Returns: float64, on the device: the losses of all processes together, named ``names``; then how many
            processes want to stop, the step that failed (from 1; 0: none), pixels of unknown classes, the
            gradients' scale, and their norm before clipping.
        """
        settings, world = self._settings, self._world
        words = np.random.SeedSequence((self._seed, step)).generate_state(2, np.uint64)
        torch.manual_seed(int(words[0]) ^ world.rank)
        # Drawn for the whole batch: which classes an image is asked for does not depend on the number of processes.
        draws = torch.rand(settings.batch_size, self._classes, generator=torch.Generator().manual_seed(int(words[1])))
        batch = Batch(*(tensor.to(self._device, non_blocking=True) for tensor in batch))
        targets = sample_targets(
            batch.masks,
            self._sent(draws[world.rank :: world.size]),
            sampled_classes=settings.sampled_classes,
            allowed=None if self._allowed is None else self._allowed[batch.sources],
        )
        counts = torch.cat([mean_counts(targets, batch.paired), targets.unknown.sum()[None]])
        *_, unknown = counts = added_up(world, counts)
        self.optimizer.zero_grad(set_to_none=True)
        part = len(batch.images) // settings.accumulate
        totals = torch.zeros((), dtype=torch.float64, device=self._device)
        for start in range(0, len(batch.images), part):
            images = slice(start, start + part)
            with self._messages(last=start + part == len(batch.images)):
                losses = self._losses(Batch(*(tensor[images] for tensor in batch)), targets.part(images), counts)
                # Gradients are averaged over processes, but a loss's parts add up.
                self.scaler.scale(losses["loss"] * world.size).backward()  # type: ignore[no-untyped-call]
            totals = totals + torch.stack([value.detach().double() for value in losses.values()])
        self.names = tuple(losses)
        seen = added_up(world, torch.cat([totals, totals.new_full((1,), float(stop))]))
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        scale = self.scaler.scale(seen.new_ones(()))
        sound = scale >= _LEAST_SCALE if self.scaler.is_enabled() else norm.isfinite()
        failing = ~(sound & seen[0].isfinite()) | (unknown > 0)
        self._failed = torch.where((self._failed == 0) & failing, float(step + 1), self._failed)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(step + 1)
        return torch.cat([seen, torch.stack([self._failed, unknown, scale, norm.double()])])

    def _losses(self, batch: Batch, targets: Targets, counts: Tensor) -> dict[str, Tensor]:
        if not self._settings.compile:
            return cast("dict[str, Tensor]", self._terms(batch, targets, counts))
        try:
            losses: dict[str, Tensor] = self._terms(batch, targets, counts)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise BackendError(
                f"train.compile: torch cannot compile the model here: {str(error).strip().splitlines()[0]}",
                hint="it needs a C++ compiler (CPU) or Triton (GPU); or set train.compile=false",
            ) from error
        return losses

    def _messages(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """DDP sends gradients with the last part only. FSDP sends each part's: whole ones have no place to wait."""
        if isinstance(self._terms, DistributedDataParallel) and not last:
            return self._terms.no_sync()
        return contextlib.nullcontext()

    def _clip(self) -> Tensor:
        """The norm of all gradients, which are made no longer than the settings allow."""
        parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        gradients = [value.grad for value in parameters if value.grad is not None]
        norm = whole(nn.utils.get_total_norm(gradients))
        if self._settings.gradient_clip:
            nn.utils.clip_grads_with_norm_(parameters, self._settings.gradient_clip, norm)
        return norm

    def _skip_failed(self, optimizer: Any, *_: Any) -> None:
        """Before an update: have it left out after a failure, besides where fp16's gradients overflow."""
        failed = (self._failed > 0).float()
        optimizer.found_inf = failed + optimizer.found_inf if self.scaler.is_enabled() else failed

    def _sent(self, tensor: Tensor) -> Tensor:
        """On the device. From memory that is not pinned, a GPU's stream would be waited for."""
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor
