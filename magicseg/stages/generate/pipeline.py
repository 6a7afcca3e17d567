"""A diffusion pipeline with fixed settings: texts and seeds to pixels, always at one batch size.

This module imports torch and diffusers; `magicseg.stages.generate.diffusion` imports it when a pipeline is needed.
"""

import contextlib
import functools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from numpy.typing import NDArray

from magicseg.core.devices import (
    first_line,
    is_out_of_memory,
    largest_fitting,
    prepare_device,
    refuse_device_fault,
    refuse_uncompilable,
    use_threads,
)
from magicseg.core.errors import BackendError, OutOfMemory
from magicseg.core.text import printable
from magicseg.stages.generate.acceleration import place, quantization_arguments
from magicseg.stages.generate.diffusers_options import DiffusersOptions
from magicseg.stages.generate.families import FAMILIES, SCHEDULERS, Family
from magicseg.stages.generate.pipeline_folder import T5_PARTS, parts_of, read_index
from magicseg.stages.generate.prompt_tokens import lost_tokens, tokenizers_of
from magicseg.weights import only_variant

_LIBRARY_LOGGERS = ("diffusers", "transformers")
_NEW_WEIGHTS = re.compile(r"newly initialized|\bMISSING\b|\bMISMATCH\b")
_ESCAPES = re.compile(r"\x1b\[[\d;]*m")
_FLOW = "FlowMatch"
# Of a sentencepiece model transformers says that it lacks tiktoken.
_TOKENIZER_LIBRARIES = re.compile(r"sentencepiece|tiktoken|protobuf", re.IGNORECASE)
_TOKENIZER_HINT = "its tokenizer is a sentencepiece model: pip install sentencepiece protobuf"


@dataclass(frozen=True)
class PaintedImages:
    """A batch of images, uint8 (images, size, size, 3), with flags (images,): undefined values, unsafe content."""

    images: NDArray[np.uint8]
    undefined: NDArray[np.bool_]
    unsafe: NDArray[np.bool_]


class TextToImage:
    """A loaded pipeline."""

    def __init__(self, options: DiffusersOptions, folder: Path, size: int) -> None:
        """Load the weights in ``folder``.

        Args: size: height and width in pixels. Raises BackendError that says what does not fit.
        """
        self._options = options
        self.size = size
        _prepare_device(options)
        self.pipe = load_pipeline(options, folder)
        self.family: Family = options.family or FAMILIES[type(self.pipe).__name__]
        self._refuse_misfits()
        _set_scheduler(self.pipe, options)
        place(self.pipe, options, self.family.title)
        self._text_length = options.text_length or self.family.text_length
        self._images_per_pair = 1 if options.inpaint else 2  # in one call

    @property
    def device(self) -> str:
        """The device that computes: "cuda" or "cpu"."""
        return self._options.device

    def use_threads(self) -> None:
        """On the CPU, use the options' number of threads in the next calls."""
        use_threads(self._options.device, self._options.cpu_threads)

    @property
    def steps(self) -> int:
        """Sampler steps per image."""
        return self._options.steps

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> PaintedImages:
        """Paint one image per text. If steps are shared, the second half are the counterfactuals of the first half.

        Args: seeds: one per image, for its initial noise and for the noise of its steps if the scheduler adds any.
        Noise is drawn on the CPU, image by image. Raises OutOfMemory.
        """
        self.use_threads()
        try:
            return self._painted(texts, seeds, self._options.steps)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                refuse_device_fault(error, self.device)
                raise
            message = first_line(error)
        raise self._explained_shortage(len(texts) // self._images_per_pair, message)

    def _painted(self, texts: Sequence[str], seeds: Sequence[int], steps: int) -> PaintedImages:
        """Paint in one call, or pair by pair where all texts of a call have a part in each other's pixels."""
        if not self.family.one_pair:
            return self._paint_once(texts, seeds, steps)
        count = len(texts) // self._images_per_pair
        pairs = [slice(pair, None, count) for pair in range(count)]
        return joined([self._paint_once(texts[pair], seeds[pair], steps) for pair in pairs])

    def _paint_once(self, texts: Sequence[str], seeds: Sequence[int], steps: int) -> PaintedImages:
        result = self._call(self.arguments(texts, seeds, steps))
        return to_painted(result.images, getattr(result, "nsfw_content_detected", None))

    def warm_up(self, pairs: int) -> None:
        """Make one short call with a batch of ``pairs``, so that errors show before the first shard.

        Raises OutOfMemory, or BackendError if the checkpoint's parts or the options do not fit each other.
        """
        try:
            self._try(pairs)
        except Exception as error:  # whatever the parts do to each other
            if not is_out_of_memory(error):
                refuse_uncompilable(error, "generate.options.compile", self._options.compile)
                raise BackendError(
                    f"{_where(self._options)}: a first batch fails: {type(error).__name__}: {printable(str(error))}",
                    hint=f"its parts, or the options, do not fit each other; {_remedy(self._options)}",
                ) from error
            message = first_line(error)
        else:
            return
        raise self._explained_shortage(pairs, message)

    def arguments(self, texts: Sequence[str], seeds: Sequence[int], steps: int) -> dict[str, Any]:
        """Return the arguments of a call of the pipeline."""
        options, family = self._options, self.family
        arguments: dict[str, Any] = {
            "prompt": list(texts),
            "height": self.size,
            "width": self.size,
            "num_inference_steps": steps,
            family.guidance: options.guidance,
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
            "output_type": "pt",
            **family.arguments,
        }
        negative = options.negative_prompt or (family.blank_negative if options.guidance > 1 else None)
        if negative:  # an empty one is not none: some families then encode it
            arguments["negative_prompt"] = [negative] * len(texts)
        if family.sequence_argument:
            arguments["max_sequence_length"] = self._text_length
        if options.shared_steps:
            share = functools.partial(_share, options.shared_steps)
            if family.step_end_callback:
                arguments["callback_on_step_end"] = lambda _pipe, step, _time, tensors: {
                    "latents": share(step, tensors["latents"])
                }
            else:
                arguments["callback"] = lambda step, _time, latents: latents.copy_(share(step, latents))
                arguments["callback_steps"] = 1
        return arguments

    def lost_tokens(self, text: str) -> int:
        """Return how many tokens at the end of ``text`` no text encoder sees."""
        return lost_tokens(self.pipe, text, self._text_length, language_model=self.family.language_model)

    def _refuse_misfits(self) -> None:
        options, pipe = self._options, self.pipe
        if options.negative_prompt and not self.family.negative_prompt:
            raise BackendError(
                f"generate.options.negative_prompt: {self.family.title} takes none", hint="leave it empty"
            )
        if options.text_length and self.family.text_length is None:
            raise BackendError(
                f"generate.options.text_length: {self.family.title} has no T5 text encoder", hint="set it to null"
            )
        if options.guidance > 1 and pipe.config.get("is_distilled"):
            raise BackendError(
                f"generate.options.guidance: these weights of {self.family.title} are distilled and take none",
                hint="set it to 1",
            )
        if self.family.steps not in {None, options.steps}:
            raise BackendError(
                f"generate.options.steps is {options.steps}; {self.family.title} takes {self.family.steps}",
                hint=f"set it to {self.family.steps}",
            )
        multiple = int(pipe.vae_scale_factor)
        if self.family.patch is not None:
            multiple *= self.family.patch
        elif getattr(pipe, "transformer", None) is not None:
            multiple *= int(pipe.transformer.config.patch_size)
        if self.size % multiple:
            below = max(multiple, self.size // multiple * multiple)
            raise BackendError(
                f"generate.size is {self.size}; {self.family.title} needs a multiple of {multiple}",
                hint=f"set generate.size to {below} or {below + multiple}",
            )

    def _explained_shortage(self, pairs: int, message: str) -> OutOfMemory:
        """Return the error for a batch that does not fit. It names the largest half, quarter... of it that fits."""
        fitting = largest_fitting(pairs, self._try)
        if fitting:
            hint = f"{fitting} fits: set generate.batch_size to {fitting} (its shards are then regenerated)"
        else:
            hint = "not even 1 fits: try generate.options.vae_slicing, attention_slicing, offload or a smaller dtype"
        return OutOfMemory(
            f"generate.batch_size is {pairs} pairs of {self.size} px in {self._options.dtype}: "
            f"{self._options.device} is out of memory: {message}",
            hint=hint,
        )

    def _try(self, pairs: int) -> None:
        """Paint a batch in two or more steps: all take the same memory, but one step is special in some pipelines."""
        steps = min(self._options.steps, max(2, self._options.shared_steps + 1))
        images = pairs * self._images_per_pair
        self._painted(["a photo"] * images, [0] * images, steps)

    def _call(self, arguments: dict[str, Any]) -> Any:
        """Call the pipeline. If the call fails, clear the caches across steps, as the library does at its end."""
        try:
            return self.pipe(**arguments)
        except BaseException:
            if self._options.cache is not None:
                self.pipe.maybe_free_model_hooks()
            raise


def load_pipeline(options: DiffusersOptions, folder: Path) -> Any:
    """Load the pipeline on the CPU. Only safetensors are read, and a checkpoint's code is not run.

    Raises BackendError if files are missing or damaged, or do not fit the architecture.
    """
    index = read_index(folder, drop_t5=options.drop_t5, known=options.family is not None)
    extra: dict[str, Any] = dict.fromkeys(T5_PARTS) if options.drop_t5 else {}
    if "safety_checker" in index and not options.safety_checker:
        extra |= {"safety_checker": None, "requires_safety_checker": False}
    extra |= quantization_arguments(options, "transformer" if "transformer" in index else "unet")
    _refuse_unnamed_variant(options, folder, parts_of(index))
    with _library_warnings() as told_by_libraries:
        try:
            # As AutoPipelineForText2Image does it, which imports all pipelines that there are.
            pipe = getattr(diffusers, index["_class_name"]).from_pretrained(
                folder,
                variant=options.variant,
                dtype=getattr(torch, options.dtype),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                **extra,
            )
        except Exception as error:  # the libraries raise whatever their parsers raise
            if isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error):
                raise BackendError(
                    f"{_where(options)}: no memory for the weights: {error}", hint="ask for more memory"
                ) from error
            raise BackendError(
                f"{_where(options)} cannot be loaded: {type(error).__name__}: {printable(str(error))}",
                hint=_TOKENIZER_HINT if _TOKENIZER_LIBRARIES.search(str(error)) else _remedy(options),
            ) from error
    lacking = [text for text in told_by_libraries if _NEW_WEIGHTS.search(text)]
    if lacking:
        told = " ".join(_ESCAPES.sub("", lacking[0]).split())[:300]
        raise BackendError(
            f"{_where(options)}: weights do not fit the architecture that its config.json names: {told}",
            hint=_remedy(options),
        )
    for name, tokenizer in tokenizers_of(pipe).items():
        if not _knows_words(tokenizer):
            raise BackendError(f"{_where(options)}: its {name} knows no words: files lack", hint=_remedy(options))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _refuse_unnamed_variant(options: DiffusersOptions, folder: Path, parts: Sequence[str]) -> None:
    """Raise BackendError if a component has only weights of one variant, and the options name no variant."""
    names = [path.relative_to(folder).as_posix() for part in parts for path in (folder / part).iterdir()]
    found = only_variant(names)
    if found and options.variant is None:
        raise BackendError(
            f"{_where(options)}: has only weights of the variant {printable(found, 40)}",
            hint=f"set generate.options.variant to {printable(found, 40)}",
        )


def _knows_words(tokenizer: Any) -> bool:
    """Return whether a tokenizer has a vocabulary: without its files the library makes an empty one."""
    tokens = tokenizer("a photo of a cat", add_special_tokens=False)["input_ids"]
    return any(token != tokenizer.unk_token_id for token in tokens)


def _where(options: DiffusersOptions) -> str:
    return f"generate.options.model: {options.model}" + (f" at {options.revision}" if options.revision else "")


def _remedy(options: DiffusersOptions) -> str:
    if options.revision is None:
        return "fetch the checkpoint again, in safetensors; compare the files' sizes with their source"
    return "its files must be safetensors; whether they are sound: magicseg fetch RUN --verify"


@contextlib.contextmanager
def _library_warnings() -> Iterator[list[str]]:
    """Collect the libraries' warnings instead of printing them."""
    texts: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            texts.append(record.getMessage())

    collector = Collector(logging.WARNING)
    loggers = [logging.getLogger(name) for name in _LIBRARY_LOGGERS]
    before = [(logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.handlers, logger.propagate = [collector], False
        logger.setLevel(logging.WARNING)
    try:
        yield texts
    finally:
        for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def _prepare_device(options: DiffusersOptions) -> None:
    """Make equal calls give equal bits, for the whole process."""
    diffusers.utils.logging.set_verbosity_error()  # truncation is counted, not printed
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.disable_progress_bar()
    prepare_device(options.device, options.cpu_threads, "generate.options.device")


def _set_scheduler(pipe: Any, options: DiffusersOptions) -> None:
    if options.scheduler == "default":
        return
    class_name, changes = SCHEDULERS[options.scheduler]
    own = type(pipe.scheduler).__name__
    kinds = {name: kind.startswith(_FLOW) for name, (kind, _) in SCHEDULERS.items()}
    if kinds[options.scheduler] != own.startswith(_FLOW):
        fitting = ["default", *(name for name, flow in kinds.items() if flow == own.startswith(_FLOW))]
        raise BackendError(
            f"generate.options.scheduler {options.scheduler!r} does not fit weights that were trained for {own}",
            hint=f"fitting: {', '.join(fitting)}",
        )
    pipe.scheduler = getattr(diffusers, class_name).from_config(pipe.scheduler.config, **changes)


def _share(steps: int, step: int, latents: torch.Tensor) -> torch.Tensor:
    """Return the latents after ``step``; in the first ``steps`` the second half becomes a copy of the first."""
    if step >= steps:
        return latents
    positives = latents[: len(latents) // 2]
    return torch.cat([positives, positives])


def to_painted(images_NCHW: torch.Tensor, flags: Sequence[bool] | None) -> PaintedImages:
    """Return a batch as uint8 images on the CPU. Args: images_NCHW: float, 0 to 1, on the device."""
    images = images_NCHW.float()
    undefined = ~torch.isfinite(images).flatten(1).all(dim=1)
    pixels = images.nan_to_num(0.0).mul(255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return PaintedImages(
        images=np.ascontiguousarray(pixels.cpu().numpy()),
        undefined=undefined.cpu().numpy(),
        unsafe=np.array(flags if flags is not None else [False] * len(images), dtype=bool),
    )


def joined(pairs: Sequence[PaintedImages]) -> PaintedImages:
    """Return one batch: the first images of all pairs, then the second ones."""
    return PaintedImages(
        images=_by_place([pair.images for pair in pairs]),
        undefined=_by_place([pair.undefined for pair in pairs]),
        unsafe=_by_place([pair.unsafe for pair in pairs]),
    )


def _by_place(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return np.stack(rows, axis=1).reshape(-1, *rows[0].shape[1:])
