"""The generate stage for `gpu.py`: a shard as a worker does it, against bare calls of the same pipeline."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import random_models
import torch
import yaml
from gpu_measure import BASELINE, Clock, Kind, Variant, counted_flops, library_defaults

from magicseg.backends import GenerateRequest
from magicseg.config.loading import load_config
from magicseg.config.stage_declarations import DECLARATIONS
from magicseg.run import Run
from magicseg.stages.base import stage_code
from magicseg.stages.generate.counterfactual_caption import counterfactual_caption
from magicseg.stages.generate.diffusion import DiffusersGenerator
from magicseg.stages.generate.validity import CheckedGenerator
from magicseg.stages.shard import execute_shard
from magicseg.stages.worker import run_shards

_SHARDS = 12  # more than the turns of a row
_BF16 = {"dtype": "bfloat16"}
_COMPILE_SECONDS = {"regional": 25.0, "denoiser": 60.0}


def _unet_variants(combined: str) -> list[Variant]:
    """Return the speed settings that have an effect on UNets. The combinations come first, then each alone.

    Args: combined: what the exact combination compiles.
    """
    layout, fused = {"channels_last": True}, {"fuse_qkv": True}
    fp8 = {**_BF16, "quantization": "fp8"}
    return [
        BASELINE,
        _compiled(combined, "channels_last, fuse_qkv, ", "exact", layout | fused),
        _compiled("regional", "channels_last, fp8, ", "lossy", layout | fp8),
        Variant("channels_last", "exact", layout),
        Variant("fuse_qkv", "exact", fused),
        *(_compiled(what, "", "exact", {}) for what in _COMPILE_SECONDS),
        *_quantized(),
        *_memory_savings(),
    ]


def _flux_variants() -> list[Variant]:
    fused = {"channels_last": True, "fuse_qkv": True}
    cache = {"cache": {"method": "first-block", "threshold": 0.08}}
    attention = ("native", "cudnn", "native-flash", "flash", "flash-3")
    return [
        BASELINE,
        _compiled("regional", "channels_last, fuse_qkv, ", "exact", fused),
        _compiled("regional", "fp8, cache first-block, ", "lossy", {"quantization": "fp8"} | cache),
        _compiled("regional", "channels_last, fuse_qkv, cache first-block, ", "lossy", fused | cache),
        Variant("cache first-block", "lossy", cache),
        *(Variant(f"attention {name}", "exact", {"attention": name}) for name in attention),
        Variant("attention sage", "lossy", {"attention": "sage"}),
        Variant("channels_last", "exact", {"channels_last": True}),
        Variant("fuse_qkv", "exact", {"fuse_qkv": True}),
        *(_compiled(what, "", "exact", {}) for what in _COMPILE_SECONDS),
        *(
            Variant(f"cache {method}", "lossy", {"cache": {"method": method}})
            for method in ("mag", "pyramid", "faster", "taylorseer")
        ),
        *_quantized(),
        *_memory_savings(),
    ]


def _compiled(what: str, others: str, kind: Kind, settings: dict[str, Any]) -> Variant:
    return Variant(f"{others}compile {what}", kind, settings | {"compile": what}, _COMPILE_SECONDS[what])


def _quantized() -> list[Variant]:
    names = ("int8-weights", "int8", "fp8-weights", "fp8")
    return [Variant(f"quantization {name}", "lossy", {**_BF16, "quantization": name}) for name in names]


def _memory_savings() -> list[Variant]:
    return [
        Variant("vae_slicing", "exact", {"vae_slicing": True}),
        *(Variant(f"offload {name}", "exact", {"offload": name}) for name in ("model", "group")),
    ]


@dataclass
class GenerateWorkload:
    """A family of pipelines at the size and with the sampler of a preset."""

    name: str
    tiny: bool
    device: str
    dtype: str
    size: int
    steps: int
    guidance: float
    batch_size: int
    pairs: int  # in one turn
    variants: Sequence[Variant]
    gigabytes: float
    options: dict[str, Any] = field(default_factory=dict)
    unit: str = "images/s"

    @property
    def title(self) -> str:
        """The sizes, for the table's head."""
        return f"{self.size} px, {self.steps} steps, pairs in a batch: {self.batch_size}, {self.dtype}"

    def write(self, folder: Path) -> None:
        """Write the checkpoint."""
        self._folder = folder
        self._opened = 0
        if self.tiny:
            from helpers import tiny_pipelines

            tiny_pipelines.build(self.name, folder)
        else:
            random_models.write_pipeline(self.name, folder, getattr(torch, self.dtype), self.device)

    @contextlib.contextmanager
    def opened(self, variant: Variant) -> Iterator["_GenerateLoops"]:
        """Load the back end in a new run whose captions are written."""
        self._opened += 1
        own = {"model": str(self._folder / self.name), "device": self.device, "dtype": self.dtype}
        sampling = {"steps": self.steps, "guidance": self.guidance, "counterfactual": "rewrite"}
        faults = {"safety_checker": False, "min_contrast": 0, "retries": 0}  # images of random weights
        options = {**own, **sampling, **faults, **self.options, **variant.settings}
        generate = {"backend": "diffusers", "size": self.size, "batch_size": self.batch_size, "options": options}
        overrides = [
            f"plan.samples={_SHARDS * self.pairs}",
            f"plan.shard_size={self.pairs}",
            "store.image_codec=jpeg",
            f"generate={yaml.safe_dump(generate, default_flow_style=True, width=10**6)}",
        ]
        run = Run.create(self._folder / f"run-{self._opened}", load_config(preset="painted", overrides=overrides))
        run_shards(run, "describe", range(run.plan.shards), report=lambda _event: None)
        yield _GenerateLoops(self, run)


class _GenerateLoops:
    def __init__(self, workload: GenerateWorkload, run: Run) -> None:
        self._workload, self._run = workload, run
        _, options = DECLARATIONS["generate"].backend(run.config)
        assert isinstance(options, DiffusersGenerator.Options)
        generator = DiffusersGenerator(run.config.generate, options)
        self._pipe = generator.pipeline.pipe
        self._backend = CheckedGenerator(generator, run.config.generate, run.config.store)
        self._shards = iter(range(_SHARDS))
        self._dropped: set[str] = set()

    def warm_up(self) -> None:
        """Do nothing: the back end has made its first batch."""

    def stage(self, clock: Clock) -> int:
        """Generate, encode, write and commit one shard."""
        shard = next(self._shards)
        with clock:
            record = execute_shard(self._run, "generate", shard, self._backend, lambda: False)
        self._dropped |= record.dropped.keys()
        return 2 * record.samples

    def bare(self, clock: Clock) -> int:
        """Call the pipeline with the same batches. It returns PIL images, the library's default."""
        requests = self._requests()
        batch = self._workload.batch_size
        images: list[Any] = []
        with library_defaults(), clock:
            for start in range(0, len(requests), batch):
                images += self._called(requests[start : start + batch], self._workload.steps)
        return len(images)

    def flops(self) -> float:
        """Count two steps and three: the rest is a multiple of their difference."""
        (request,) = self._requests()[:1]
        two, three = (counted_flops(lambda steps=steps: self._called([request], steps)) for steps in (2, 3))
        return (two + (self._workload.steps - 2) * (three - two)) / 2

    def remark(self) -> str:
        """Say whether pairs were dropped, because those are not encoded."""
        return f"random weights gave pairs that were dropped: {', '.join(sorted(self._dropped))}" * bool(
            self._dropped
        )

    def _requests(self) -> list[GenerateRequest]:
        requests: list[GenerateRequest] = stage_code("generate").requests(self._run, self._run.plan.shard_range(0))
        return requests

    def _called(self, requests: Sequence[GenerateRequest], steps: int) -> list[Any]:
        workload = self._workload
        texts = [request.caption for request in requests]
        texts += [str(counterfactual_caption(request, "rewrite")) for request in requests]
        images: list[Any] = self._pipe(
            texts,
            height=workload.size,
            width=workload.size,
            num_inference_steps=steps,
            guidance_scale=workload.guidance,
            generator=[torch.Generator("cpu").manual_seed(request.seed) for request in [*requests, *requests]],
        ).images
        return images


def generate_workloads(device: str, *, tiny: bool) -> list[GenerateWorkload]:
    """Return Stable Diffusion 1.5 and XL as in the presets ``paper`` and ``sdxl``, and FLUX.1-dev.

    The two large ones take fewer sampler steps than in use, so that there is time for more settings. Decoding,
    encoding and writing then have a larger share of a turn than in a run.
    """
    sd15, sdxl, flux = _unet_variants("denoiser"), _unet_variants("regional"), _flux_variants()
    if tiny:
        own = {"tiny": True, "device": device, "dtype": "float32", "size": 32, "steps": 3, "gigabytes": 0.1}
        unet: dict[str, Any] = {**own, "batch_size": 2, "pairs": 4}
        ddim = {"scheduler": "ddim"}  # the tiny checkpoint's own scheduler takes a step more than asked for
        return [
            GenerateWorkload("sd15", guidance=7.5, variants=sd15, options=ddim, **unet),
            GenerateWorkload("sdxl", guidance=5.0, variants=sdxl, **unet),
            GenerateWorkload("flux", guidance=3.5, variants=flux, batch_size=1, pairs=2, **own),
        ]
    full: dict[str, Any] = {"tiny": False, "device": device}
    half, large = {"dtype": "float16", **full}, {"size": 1024, "steps": 10}
    karras = {"scheduler": "dpm++-2m-karras"}
    return [
        GenerateWorkload(
            "sd15", size=512, steps=20, guidance=7.5, batch_size=8, pairs=16, variants=sd15, gigabytes=3, **half
        ),
        GenerateWorkload(
            "sdxl", guidance=5.0, batch_size=2, pairs=4, variants=sdxl, gigabytes=8, options=karras, **large, **half
        ),
        GenerateWorkload(
            "flux",
            dtype="bfloat16",
            guidance=3.5,
            batch_size=1,
            pairs=2,
            variants=flux,
            gigabytes=28,
            **large,
            **full,
        ),
    ]
