"""One training step: targets, losses, gradients, and an update that is skipped if anything is not finite.

Nothing here waits for the device. A step returns a `StepReport`, whose numbers are read one step later
(`magicseg.train.deferred_metrics`).
"""

import contextlib
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from magicseg.config.training import TrainSettings
from magicseg.core.distributed import World, all_reduce_sum
from magicseg.core.errors import BackendError
from magicseg.data.dataset import Batch
from magicseg.labels import Vocabulary
from magicseg.model.hard_negatives import class_responses, with_hard_negatives
from magicseg.model.losses import loss_terms
from magicseg.model.losses.class_chunks import GridLogits, term_counts, term_values
from magicseg.model.losses.pairs import true_pairs
from magicseg.model.losses.term import ForwardPass, ImageTokens, PairedImages, weighted_sum
from magicseg.model.segmenter import Segmenter
from magicseg.model.targets import Targets, sample_targets
from magicseg.train.deferred_metrics import StepReport
from magicseg.train.ema import Ema
from magicseg.train.optimizer import build_optimizer
from magicseg.train.sharding import is_sharded, replicate, shard, whole

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_LEAST_SCALE = 2.0**-24  # for fp16: gradients that overflow even at this scale are not finite at any scale


class ModelWithLosses(nn.Module):
    """The model and its losses as one module: one forward call computes all, and DDP or FSDP can wrap it.

    ``allowed``: bool (sources, C), ``validated``: bool (sources,), as in `magicseg.data.dataset.Mixture`. None: all
    classes are allowed, and no source's pairs are validated.
    """

    def __init__(
        self,
        model: Segmenter,
        vocabulary: Vocabulary,
        settings: TrainSettings,
        *,
        allowed: Tensor | None = None,
        validated: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.names = vocabulary.names
        self.settings = settings
        self.terms = loss_terms(settings)
        self._allowed, self._validated = allowed, validated

    def allowed(self, batch: Batch) -> Tensor | None:
        """Return the classes that each image may be queried for, bool (B, C); None: all."""
        return None if self._allowed is None else self._allowed[batch.sources]

    def counts(self, batch: Batch, targets: Targets) -> list[Tensor]:
        """Return every term's `LossTerm.count`."""
        pairs = self._pairs(batch)
        return term_counts(self.terms, targets, pairs, chunk=self.settings.class_chunk)

    def forward(self, batch: Batch, targets: Targets, counts: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return scalars: ``loss``, the weighted sum, and the terms by name, before their weights.

        They are this part's share of the means over the whole batch.

        Args: counts: `counts` of the whole batch, each summed over its parts.
        """
        values = term_values(self.terms, counts, *self._forward_pass(batch, targets), chunk=self.settings.class_chunk)
        names = [term.name for term in self.terms]
        return {"loss": weighted_sum(self.terms, values), **dict(zip(names, values, strict=True))}

    def _pairs(self, batch: Batch) -> PairedImages:
        validated = torch.zeros_like(batch.paired) if self._validated is None else self._validated[batch.sources]
        return PairedImages(batch.images, batch.counterfactuals, batch.paired, validated)

    def _forward_pass(self, batch: Batch, targets: Targets) -> tuple[ForwardPass, GridLogits, GridLogits | None]:
        """Return the pass without masks and logits, the logits, and the counterfactuals' if a term reads them."""
        precision, count = self.settings.precision, len(batch.images)
        with_other_logits = any(term.reads_counterfactual_logits for term in self.terms)
        hard = self.settings.hard_negatives
        with_counterfactuals = with_other_logits or hard > 0 or any(t.reads_counterfactuals for t in self.terms)
        images = torch.cat([batch.images, batch.counterfactuals]) if with_counterfactuals else batch.images
        every_layer = any(term.reads_earlier_layers for term in self.terms)
        with torch.autocast(images.device.type, dtype=_DTYPES[precision], enabled=precision != "fp32"):
            cls, patches = self.model.encode_images(images)
            texts = _class_texts(self.model, self.names)
            tokens, others = ImageTokens(cls[:count], patches[:count]), ImageTokens(cls[count:], patches[count:])
            if hard:
                responses = class_responses(others.patches, texts, targets.valid)
                pairs, allowed = true_pairs(targets, batch.paired), self.allowed(batch)
                targets = with_hard_negatives(targets, responses, count=hard, images=pairs, allowed=allowed)
            text = texts[targets.classes]
            logits = self._decode(tokens, text, batch.images, every_layer=every_layer)
            # In a call of its own, so that the images' logits are the same bits with and without it.
            other_logits = self._decode(others, text, batch.counterfactuals) if with_other_logits else None
        found = ForwardPass(
            targets=targets,
            pairs=self._pairs(batch),
            text=text,
            images=tokens,
            counterfactuals=others if with_counterfactuals else None,
        )
        return found, logits, other_logits

    def _decode(self, tokens: ImageTokens, text: Tensor, images: Tensor, *, every_layer: bool = False) -> GridLogits:
        size = images.shape[-2], images.shape[-1]
        layers = self.model.decode_on_grid(*tokens, text, size, every_layer=every_layer)
        return GridLogits(layers, self.model.upsampler(tokens.patches, images))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _class_texts(model: Segmenter, names: tuple[str, ...]) -> Tensor:
    """Return the embeddings of all classes, (C, D). Not compiled: a compiler cannot speed up text processing."""
    return model.class_texts(names)


class Stepper:
    """The state of training (``model``, ``optimizer``, ``ema``, ``scaler``) and the step that updates it.

    ``shapes``: the model's tensors' shapes, unsharded. ``sharded``: whether FSDP shards the parameters.

    A step fails if its loss is not finite on any rank, if a gradient is not finite (in fp16: at no loss scale), or if
    masks hold unknown classes. After that the weights of all ranks stay as they were before the failed step, until
    the host reads the report and raises. The device never waits for this: the optimizer's kernel reads ``found_inf``,
    as it does for torch's ``GradScaler``.
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
        validated: NDArray[np.bool_],
    ) -> None:
        """Args: allowed, validated: as in `magicseg.data.dataset.Mixture`."""
        self.model = model
        self._settings = settings
        self._seed = seed
        self._device = device
        self._world = world
        self._classes = len(vocabulary.names)
        module = ModelWithLosses(
            model,
            vocabulary,
            settings,
            allowed=None if allowed is None else torch.from_numpy(allowed).to(device),
            validated=torch.from_numpy(validated).to(device),
        )
        self._allowed, self._counts = module.allowed, module.counts
        self.shapes = {name: value.shape for name, value in model.state_dict().items()}
        self.sharded = is_sharded(settings, world)
        if self.sharded:
            shard(module, cast("nn.Module", model.encoder), world)
        if settings.compile:
            module.compile()
        self._module = replicate(module) if world.size > 1 and not self.sharded else module
        self.optimizer = build_optimizer(model, settings)
        self.optimizer.register_step_pre_hook(self._skip_failed)
        self.scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
        self.ema = Ema(model, settings.ema_decay) if settings.ema_decay is not None else None
        self._failed = torch.zeros((), dtype=torch.float64, device=device)

    def __call__(self, batch: Batch, *, step: int, stop: bool) -> StepReport:
        """Take one step. Its randomness follows from (seed, step), and dropout's from the rank too.

        Args: batch: this rank's share. step: from 0. stop: whether this rank wants training to end.
        """
        settings, world = self._settings, self._world
        words = np.random.SeedSequence((self._seed, step)).generate_state(2, np.uint64)
        torch.manual_seed(int(words[0]) ^ world.rank)
        # Drawn for the whole batch, so that the queried classes of an image do not depend on the number of ranks.
        draws = torch.rand(settings.batch_size, self._classes, generator=torch.Generator().manual_seed(int(words[1])))
        batch = Batch(*(tensor.to(self._device, non_blocking=True) for tensor in batch))
        targets = sample_targets(
            batch.masks,
            self._sent(draws[world.rank :: world.size]),
            sampled_classes=settings.sampled_classes,
            allowed=self._allowed(batch),
        )
        parts = [*self._counts(batch, targets), targets.unknown.sum()[None]]
        *counts, unknown = torch.split(
            all_reduce_sum(world, torch.cat(parts).double()), [len(each) for each in parts]
        )
        unknown = unknown.squeeze()
        self.optimizer.zero_grad(set_to_none=True)
        part = len(batch.images) // settings.accumulate
        totals = torch.zeros((), dtype=torch.float64, device=self._device)
        for start in range(0, len(batch.images), part):
            images = slice(start, start + part)
            with self._gradient_sync(last=start + part == len(batch.images)):
                losses = self._losses(Batch(*(tensor[images] for tensor in batch)), targets.part(images), counts)
                # DDP and FSDP average gradients over ranks, but the ranks' shares of the loss add up.
                self.scaler.scale(losses["loss"] * world.size).backward()  # type: ignore[no-untyped-call]
            totals = totals + torch.stack([value.detach().double() for value in losses.values()])
        names = tuple(losses)
        summed = all_reduce_sum(world, torch.cat([totals, totals.new_full((1,), float(stop))]))
        totals, stops = summed[:-1], summed[-1]
        self.scaler.unscale_(self.optimizer)
        norm = self._clip()
        scale = self.scaler.scale(totals.new_ones(()))
        sound = scale >= _LEAST_SCALE if self.scaler.is_enabled() else norm.isfinite()
        failing = ~(sound & totals[0].isfinite()) | (unknown > 0)
        self._failed = torch.where((self._failed == 0) & failing, float(step + 1), self._failed)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.ema is not None:
            self.ema.update(step + 1)
        return StepReport(
            names=names,
            losses=totals,
            stops=stops,
            failed_step=self._failed,
            unknown_pixels=unknown,
            scale=scale,
            norm=norm.double(),
        )

    def _losses(self, batch: Batch, targets: Targets, counts: Sequence[Tensor]) -> dict[str, Tensor]:
        if not self._settings.compile:
            return cast("dict[str, Tensor]", self._module(batch, targets, counts))
        try:
            losses: dict[str, Tensor] = self._module(batch, targets, counts)
        except torch._dynamo.exc.TorchDynamoException as error:
            raise BackendError(
                f"train.compile: torch cannot compile the model here: {str(error).strip().splitlines()[0]}",
                hint="it needs a C++ compiler (CPU) or Triton (GPU); or set train.compile=false",
            ) from error
        return losses

    def _gradient_sync(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Have DDP all-reduce gradients after the last part only.

        FSDP reduces the gradients of every part, since a rank has no memory for whole ones.
        """
        if isinstance(self._module, DistributedDataParallel) and not last:
            return self._module.no_sync()
        return contextlib.nullcontext()

    def _clip(self) -> Tensor:
        """Clip all gradients together to the norm in the settings; return the norm before."""
        parameters = [value for group in self.optimizer.param_groups for value in group["params"]]
        gradients = [value.grad for value in parameters if value.grad is not None]
        norm = whole(nn.utils.get_total_norm(gradients))
        if self._settings.gradient_clip:
            nn.utils.clip_grads_with_norm_(parameters, self._settings.gradient_clip, norm)
        return norm

    def _skip_failed(self, optimizer: Any, *_: Any) -> None:
        """Have the optimizer skip its update after a failed step, and in fp16 when gradients overflow."""
        failed = (self._failed > 0).float()
        optimizer.found_inf = failed + optimizer.found_inf if self.scaler.is_enabled() else failed

    def _sent(self, tensor: Tensor) -> Tensor:
        """Copy to the device without waiting. A copy from unpinned memory would wait for the GPU's stream."""
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor
