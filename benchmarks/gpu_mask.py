"""The mask stage for `gpu.py`: GroundingDINO, SAM, and both as the stage runs them, against the library's loop.

The settings to measure are those that the back ends declare: a new switch is measured without a change here.
"""

import contextlib
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import random_models
import torch
import transformers
import yaml
from gpu_measure import BASELINE, Clock, Variant, counted_flops, library_defaults

from magicseg.backends import DetectRequest, Image, SegmentRequest
from magicseg.config.loading import load_config
from magicseg.labels import Label
from magicseg.run import Run
from magicseg.stages.shard import execute_shard, load_backend
from magicseg.stages.worker import run_shards
from magicseg.vision.batches import BOXES_PER_CALL, HasBatch
from magicseg.vision.inference import compile_encoder, gpu_dtype, weights_dtype
from magicseg.vision.model_options import ModelOptions
from magicseg.vision.shipped_models import TransformersDetector, TransformersSegmenter

Name = Literal["detect", "segment", "mask"]
_NAMES: tuple[Name, ...] = typing.get_args(Name)
_SHARDS = 12  # more than the turns of a row
_BACK_ENDS: Mapping[str, Any] = {"detector": TransformersDetector, "segmenter": TransformersSegmenter}
_FOLDERS = {"detector": "grounding_dino", "segmenter": "sam"}
_ENCODERS = {"detector": "model.backbone.conv_encoder", "segmenter": "vision_encoder"}
_LOSSY = ("dtype", "quantization")
_NOT_SPEED = ("device",)
_COMPILE_SECONDS = 40.0


def declared_variants(role: str, device: str) -> list[Variant]:
    """Return one variant for every value of a back end's switches that is not the default.

    Args: role: "detector" or "segmenter". A switch is an option that is true or false, or has named values.
    """
    options = _BACK_ENDS[role].Options
    given = {"model": "/weights", "device": device}
    defaults = options.model_validate(given)
    found = []
    for name, declared in options.model_fields.items():
        values = _choices(declared.annotation)
        if name in _NOT_SPEED or not values:
            continue
        for value in values:
            if device == "cpu" and value == "float16":  # refused
                continue
            if options.model_validate(given | {name: value}) != defaults:
                kind: Literal["exact", "lossy"] = "lossy" if name in _LOSSY else "exact"
                compile_seconds = _COMPILE_SECONDS if name == "compile" else 0.0
                found.append(Variant(f"{role}: {name} {value}", kind, {role: {name: value}}, compile_seconds))
    return found


def _choices(annotation: Any) -> tuple[Any, ...]:
    if annotation is bool:
        return (False, True)
    return typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()


def _dtype_name(options: ModelOptions) -> str:
    """Return the dtype of matrix products. "auto" is 16 bits on a GPU."""
    dtype = gpu_dtype() if options.dtype == "auto" else weights_dtype(options)
    return str(dtype).removeprefix("torch.")


def _autocast(options: ModelOptions) -> torch.autocast:
    """Return the context in which the back end computes with these options."""
    wanted = options.dtype == "auto" and options.AUTOCAST
    return torch.autocast(options.device, gpu_dtype() if wanted else torch.bfloat16, enabled=wanted)


def combined(name: str, variants: Sequence[Variant], *, bf16: bool) -> Variant:
    """Return one variant with all switches of exact ``variants`` on. Args: bf16: and with bfloat16 weights."""
    settings: dict[str, dict[str, Any]] = {}
    for variant in variants:
        for role, chosen in variant.settings.items():
            if variant.kind == "exact" or (bf16 and chosen.get("dtype") == "bfloat16"):
                settings[role] = settings.get(role, {}) | chosen
    compile_seconds = sum(variant.compile_seconds for variant in variants)
    return Variant(name, "lossy" if bf16 else "exact", settings, compile_seconds)


def _variants(roles: Sequence[str], device: str) -> list[Variant]:
    single = [variant for role in roles for variant in declared_variants(role, device)]
    combinations = [
        combined("all switches, exact", single, bf16=False),
        combined("all switches, bfloat16", single, bf16=True),
    ]
    new = [one for one in combinations if one.settings and all(one.settings != other.settings for other in single)]
    return [BASELINE, *new, *single]


@dataclass
class MaskWorkload:
    """GroundingDINO with Swin-T, SAM with ViT-H, or the stage with both.

    ``batch_size``: images in one call. ``images``: in one turn.
    """

    name: Name
    tiny: bool
    device: str
    size: int
    batch_size: int
    images: int
    gigabytes: float
    unit: str = "images/s"
    folder: Path = Path("/weights")

    @property
    def roles(self) -> tuple[str, ...]:
        """The back ends that take part."""
        return {"detect": ("detector",), "segment": ("segmenter",), "mask": ("detector", "segmenter")}[self.name]

    @property
    def variants(self) -> list[Variant]:
        """The defaults, all switches together, and each alone."""
        return _variants(self.roles, self.device)

    @property
    def dtype(self) -> str:
        """The dtype of the heavier model's matrix products, with the default settings."""
        return _dtype_name(self.options(self.roles[-1], {}))

    @property
    def title(self) -> str:
        """The sizes, for the table's head."""
        dtypes = ", ".join(f"{role} {_dtype_name(self.options(role, {}))}" for role in self.roles)
        boxes = "" if self.name == "detect" else f", {BOXES_PER_CALL} boxes an image"
        return f"images of {self.size} px, batches of {self.batch_size}{boxes}, {dtypes}"

    def write(self, folder: Path) -> None:
        """Write both checkpoints."""
        self.folder = folder
        self._opened = 0
        if self.tiny:
            from helpers import tiny_detectors

            for name in _FOLDERS.values():
                tiny_detectors.build(name, folder)
        else:
            random_models.write_detector_and_sam(folder, sam="h", device=self.device)

    @contextlib.contextmanager
    def opened(self, variant: Variant) -> Iterator["_Models | _Stage"]:
        """Load the back ends with a variant's settings."""
        transformers.utils.logging.set_verbosity_error()
        self._opened += 1
        yield _Stage(self, variant.settings) if self.name == "mask" else _Models(self, variant.settings)

    def backend(self, role: str, settings: Mapping[str, Any]) -> Any:
        """Return a loaded detector or segmenter."""
        return _BACK_ENDS[role](HasBatch(self.batch_size), self.options(role, settings))

    def options(self, role: str, settings: Mapping[str, Any]) -> ModelOptions:
        """Return the options of a detector or segmenter."""
        options: ModelOptions = _BACK_ENDS[role].Options.model_validate(self._values(role, settings))
        return options

    def _values(self, role: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {"model": str(self.folder / _FOLDERS[role]), "device": self.device, **settings.get(role, {})}

    def run(self, settings: Mapping[str, Any]) -> Run:
        """Return a run whose images are painted and whose mask stage finds objects in random scores."""
        choices = {
            role: {
                "backend": "transformers",
                "options": self._values(role, settings),
            }
            for role in self.roles
        }
        # Random weights find objects in all images: take the best, and do not ask for them in the counterfactual.
        accepting = {"box_threshold": 0.0, "text_threshold": 0.0, "nms_iou": 1.0, "max_objects": BOXES_PER_CALL}
        accepting |= {"min_area": 0.0, "max_area": 1.0, "check_counterfactual": False, "missing_labels": "keep"}
        mask = {"backend": "detect-segment", "batch_size": self.batch_size, "options": choices | accepting}
        overrides = [
            f"plan.samples={_SHARDS * self.images}",
            f"plan.shard_size={self.images}",
            f"generate.size={self.size}",
            "store.image_codec=jpeg",
            f"mask={yaml.safe_dump(mask, default_flow_style=True, width=10**6)}",
        ]
        run = Run.create(self.folder / f"run-{self._opened}", load_config(preset="painted", overrides=overrides))
        for stage in ("describe", "generate"):
            run_shards(run, stage, range(run.plan.shards), report=lambda _event: None)
        return run


class BareLibrary:
    """The library's own loop: processor, model and post-processing for each batch, as its pages show it."""

    def __init__(self, workload: MaskWorkload, settings: Mapping[str, Any]) -> None:
        self._workload = workload
        autos = {
            "detector": transformers.AutoModelForZeroShotObjectDetection,
            "segmenter": transformers.AutoModelForMaskGeneration,
        }
        self._options = {role: workload.options(role, settings) for role in workload.roles}
        self._dtypes = {role: weights_dtype(options) for role, options in self._options.items()}
        self._models, self._processors = {}, {}
        for role in workload.roles:
            folder = workload.folder / _FOLDERS[role]
            model = autos[role].from_pretrained(folder, dtype=self._dtypes[role])
            self._models[role] = model.to(workload.device).eval()
            compile_encoder(self._models[role].get_submodule(_ENCODERS[role]), self._options[role])
            self._processors[role] = transformers.AutoProcessor.from_pretrained(folder)

    @torch.inference_mode()
    def detect(self, images: Sequence[Image], name: str) -> list[torch.Tensor]:
        """Return the boxes of every image, (n, 4) in pixels, by descending score."""
        processor = self._processors["detector"]
        inputs = processor(images=list(images), text=[f"{name}."] * len(images), return_tensors="pt")
        inputs = inputs.to(self._workload.device, self._dtypes["detector"])
        with _autocast(self._options["detector"]):
            output = self._models["detector"](**inputs)
        found = processor.post_process_grounded_object_detection(
            output,
            inputs.input_ids,
            threshold=0.0,
            text_threshold=0.0,
            target_sizes=[image.shape[:2] for image in images],
        )
        return [one["boxes"][one["scores"].argsort(descending=True)].float().cpu() for one in found]

    @torch.inference_mode()
    def segment(self, images: Sequence[Image], boxes: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the masks of every image, bool (n, 1, height, width) on the CPU. All images have as many boxes."""
        processor, device = self._processors["segmenter"], self._workload.device
        inputs = processor(list(images), input_boxes=[each.tolist() for each in boxes], return_tensors="pt")
        output = self._models["segmenter"](
            pixel_values=inputs["pixel_values"].to(device, self._dtypes["segmenter"]),
            input_boxes=inputs["input_boxes"].float().to(device),
            multimask_output=False,
        )
        masks: list[torch.Tensor] = processor.image_processor.post_process_masks(
            output.pred_masks.float().cpu(), inputs["original_sizes"], inputs["reshaped_input_sizes"]
        )
        return masks


class _Loops:
    """What the two pairs of loops share: the bare one. Its models are loaded when it is first called."""

    def __init__(self, workload: MaskWorkload, settings: Mapping[str, Any]) -> None:
        self.workload, self._settings = workload, settings
        self._library: BareLibrary | None = None

    @property
    def library(self) -> BareLibrary:
        if self._library is None:
            self._library = BareLibrary(self.workload, self._settings)
            self._one_batch(self.inputs()[: self.workload.batch_size])  # not under a clock
        return self._library

    def inputs(self) -> list[tuple[Image, str]]:
        raise NotImplementedError

    def bare(self, clock: Clock) -> int:
        """Detect and outline batch by batch, in the images of one turn."""
        library, inputs = self.library, self.inputs()
        batch = self.workload.batch_size
        with library_defaults(), clock:
            for start in range(0, len(inputs), batch):
                self._one_batch(inputs[start : start + batch], library)
        return len(inputs)

    def flops(self) -> float:
        """Count one batch."""
        library, inputs = self.library, self.inputs()[: self.workload.batch_size]
        return counted_flops(lambda: self._one_batch(inputs, library)) / len(inputs)

    def _one_batch(self, inputs: Sequence[tuple[Image, str]], library: BareLibrary | None = None) -> None:
        library = library or self.library
        images = [image for image, _ in inputs]
        boxes = [torch.from_numpy(_boxes(image)) for image in images]
        if "detector" in self.workload.roles:
            boxes = [each[:BOXES_PER_CALL] for each in library.detect(images, inputs[0][1])]
        if "segmenter" in self.workload.roles:
            library.segment(images, boxes)


class _Models(_Loops):
    """One model by itself, as the back end calls it."""

    def __init__(self, workload: MaskWorkload, settings: Mapping[str, Any]) -> None:
        super().__init__(workload, settings)
        random = np.random.default_rng(0)
        shape = (workload.images, workload.size, workload.size, 3)
        self._images = list(random.integers(0, 256, shape, dtype=np.uint8))
        self._backend = workload.backend(workload.roles[0], settings)

    def inputs(self) -> list[tuple[Image, str]]:
        return [(image, "cat") for image in self._images]

    def warm_up(self) -> None:
        """Run one batch."""
        self._call(self._images[: self.workload.batch_size])

    def stage(self, clock: Clock) -> int:
        """Give the back end all images of a turn."""
        with clock:
            self._call(self._images)
        return len(self._images)

    def remark(self) -> str:
        """Nothing."""
        return ""

    def _call(self, images: Sequence[Image]) -> None:
        if self.workload.name == "detect":
            cat = (Label(id=1, name="cat"),)
            self._backend.detect([DetectRequest(image=image, labels=cat) for image in images])
        else:
            self._backend.segment([SegmentRequest(image=image, boxes=_boxes(image)) for image in images])


class _Stage(_Loops):
    """The mask stage: shards are read, masked, written and committed."""

    def __init__(self, workload: MaskWorkload, settings: Mapping[str, Any]) -> None:
        super().__init__(workload, settings)
        self._run = workload.run(settings)
        self._backend = load_backend(self._run, "mask")
        self._shards = iter(range(_SHARDS))
        self._dropped: set[str] = set()

    def inputs(self) -> list[tuple[Image, str]]:
        images = self._run.store.read_images("generate/image", 0, self.workload.images)
        name = self._run.vocabulary.by_id(self._run.plan.label_ids(0)[0]).name
        return [(image, name) for image in images]

    def warm_up(self) -> None:
        """Do one shard."""
        self.stage(Clock(self.workload.device))

    def stage(self, clock: Clock) -> int:
        """Do one shard."""
        shard = next(self._shards)
        with clock:
            record = execute_shard(self._run, "mask", shard, self._backend, lambda: False)
        self._dropped |= record.dropped.keys()
        return record.samples

    def remark(self) -> str:
        """Say whether samples were dropped, because their masks are not composed."""
        return f"random weights gave masks that were dropped: {', '.join(sorted(self._dropped))}" * bool(
            self._dropped
        )


def _boxes(image: Image) -> np.ndarray:
    """Return `BOXES_PER_CALL` boxes, float32 (n, 4), that cover a quarter of the image each."""
    height, width = image.shape[:2]
    corners = [(x, y) for y in (0.0, 0.4) for x in (0.0, 0.4)][:BOXES_PER_CALL]
    boxes = [[x * width, y * height, (x + 0.5) * width, (y + 0.5) * height] for x, y in corners]
    return np.array(boxes, np.float32)


def mask_workloads(device: str, *, tiny: bool) -> list[MaskWorkload]:
    """Return the detector, the segmenter, and the stage, at the size of the preset ``paper``."""
    if tiny:
        own: dict[str, Any] = {"tiny": True, "device": device, "size": 64, "batch_size": 2, "images": 4}
        return [MaskWorkload(name, gigabytes=0.1, **own) for name in _NAMES]
    own = {"tiny": False, "device": device, "size": 512, "batch_size": 8, "images": 32, "gigabytes": 5}
    return [MaskWorkload(name, **own) for name in _NAMES]
