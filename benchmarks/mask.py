"""Masking in batches takes a fraction of the time of calling a detector and SAM image by image.

The reference works like simple scripts. For both images of a pair it calls the library's processor, GroundingDINO and
the library's post-processing. For the image with objects it then calls SAM's processor, SAM with the boxes, and its
post-processing. Both sides have the same weights, images and number of boxes, and take turns. A ratio is magicseg's
rate over the reference's in the same turn; the table shows medians over the turns. Random weights do not affect the
time: ``tiny`` are the models of the tests, ``full`` have the sizes of GroundingDINO with Swin-T and of SAM with ViT-B
(172 M and 94 M parameters). Nothing is downloaded. A second table has the validity check followed by the masker, with
equal detector and thresholds as in the preset ``sdxl``: once the masker detects again, once it takes what the check
found. With ``--flat`` the script instead prints the memory after few and many pairs.

    python benchmarks/mask.py
    python benchmarks/mask.py --flat 1000
    python benchmarks/mask.py --model full --device cuda --dtype bfloat16 --size 512 --batch-size 8
"""

import argparse
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import random_models
import torch
import transformers
from measure import print_table, timed

from magicseg.backends import Detections, DetectRequest, Instances, Masked, MaskRequest
from magicseg.labels import Label
from magicseg.stages.mask import detect_segment
from magicseg.stages.mask.detect_segment import DetectSegmentMasker
from magicseg.vision.recorded_instances import kept_instances, read_instances

CAT = Label(id=1, name="cat")
BOXES = 2


def _build(kind: str, folder: Path) -> None:
    """Write checkpoints of both models with random weights."""
    from helpers import tiny_detectors

    if kind == "tiny":
        for name in ("grounding_dino", "sam"):
            tiny_detectors.build(name, folder)
        return
    random_models.write_detector_and_sam(folder, sam="b", device="cpu")


def _images(count: int, size: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    small = random.integers(0, 256, (count, 8, 12, 3), dtype=np.uint8)
    return [np.kron(one, np.ones((size // 8, size // 8, 1), np.uint8)) for one in small]


class OneByOne:
    """The reference: one image at a time."""

    def __init__(self, folder: Path, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.detector, self.segmenter = (
            auto.from_pretrained(folder / name, dtype=dtype).to(device).eval()
            for auto, name in (
                (transformers.AutoModelForZeroShotObjectDetection, "grounding_dino"),
                (transformers.AutoModelForMaskGeneration, "sam"),
            )
        )
        self.processors = [
            transformers.AutoProcessor.from_pretrained(folder / name) for name in ("grounding_dino", "sam")
        ]

    @torch.inference_mode()
    def detect(self, image: np.ndarray) -> torch.Tensor:
        """Return boxes (n, 4) in pixels, by descending score."""
        inputs = self.processors[0](images=image, text="cat.", return_tensors="pt").to(self.device, self.dtype)
        (found,) = self.processors[0].post_process_grounded_object_detection(
            self.detector(**inputs),
            inputs.input_ids,
            threshold=0.0,
            text_threshold=0.0,
            target_sizes=[image.shape[:2]],
        )
        return found["boxes"][found["scores"].argsort(descending=True)]

    @torch.inference_mode()
    def segment(self, image: np.ndarray, boxes: torch.Tensor) -> torch.Tensor:
        """Return masks (n, 1, height, width)."""
        inputs = self.processors[1](image, input_boxes=[boxes.tolist()], return_tensors="pt").to(self.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self.dtype)
        inputs["input_boxes"] = inputs["input_boxes"].float()
        sizes = inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
        model_inputs = {name: inputs[name] for name in ("pixel_values", "input_boxes")}
        output = self.segmenter(**model_inputs, multimask_output=False)
        return self.processors[1].image_processor.post_process_masks(output.pred_masks.cpu().float(), *sizes)[0]

    def mask(self, requests: Sequence[MaskRequest]) -> list[torch.Tensor]:
        """Mask all pairs."""
        masks = []
        for request in requests:
            boxes = self.detect(request.image)[:BOXES]
            self.detect(request.counterfactual)
            masks.append(self.segment(request.image, boxes))
        return masks


def _masker(folder: Path, arguments: argparse.Namespace) -> DetectSegmentMasker:
    own = {"device": arguments.device, "dtype": arguments.dtype, "cpu_threads": arguments.threads}
    choices = {
        role: {"backend": "transformers", "options": {"model": str(folder / name), **own}}
        for role, name in (("detector", "grounding_dino"), ("segmenter", "sam"))
    }
    # Random weights find objects in all images, including counterfactuals. The settings must not drop such samples.
    accept_all = {"box_threshold": 0.0, "text_threshold": 0.0, "nms_iou": 1.0, "max_objects": BOXES, "min_area": 0.0}
    masker = DetectSegmentMasker(
        SimpleNamespace(batch_size=arguments.batch_size),
        DetectSegmentMasker.Options.model_validate({**choices, **accept_all, "max_area": 1.0}),
    )
    detect_segment.remaining_label = lambda *_: None
    return masker


class Check:
    """The validity check's detections, by the masker's own finder. ``passes``: images that the detector has seen."""

    def __init__(self, masker: DetectSegmentMasker) -> None:
        self._finder = masker._finder
        self.passes = 0
        detect = self._finder._detector.detect

        def counted(requests: Sequence[DetectRequest]) -> Sequence[Detections]:
            self.passes += len(requests)
            return detect(requests)

        self._finder._detector.detect = counted  # type: ignore[method-assign]

    def with_found(self, requests: Sequence[MaskRequest]) -> list[MaskRequest]:
        """Detect in both images of all pairs, and keep the result as a run does."""
        found = self._finder.find(
            [
                DetectRequest(image=image, labels=request.labels)
                for request in requests
                for image in (request.image, request.counterfactual)
            ]
        )
        nothing = Instances(
            boxes=np.zeros((0, 4), np.float32),
            labels=np.zeros(0, np.int64),
            scores=np.zeros(0, np.float32),
            best=np.zeros(1, np.float32),
        )
        return [
            replace(request, found=read_instances(kept_instances(found[2 * number], nothing), 1))
            for number, request in enumerate(requests)
        ]


def _requests(count: int, size: int) -> list[MaskRequest]:
    images = _images(2 * count, size)
    return [
        MaskRequest(index=i, labels=(CAT,), caption="", image=images[i], counterfactual=images[count + i], seed=i)
        for i in range(count)
    ]


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=["tiny", "full"], default="tiny")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument(
        "--size", type=int, default=64, help="height in pixels, a multiple of 8; the width is 1.5 times the height"
    )
    parser.add_argument("--batch-size", type=int, default=16, help="images")
    parser.add_argument("--pairs", type=int, default=32, help="in one turn; a multiple of the batch size")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--flat", type=int, metavar="PAIRS", help="print memory after few pairs and after PAIRS more")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers.utils.logging.set_verbosity_error()
    requests = _requests(arguments.pairs, arguments.size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        _build(arguments.model, folder)
        masker = _masker(folder, arguments)
        reference = OneByOne(folder, arguments.device, getattr(torch, arguments.dtype))

    check = Check(masker)

    def masked(given: Sequence[MaskRequest] = requests) -> None:
        answers = masker.mask(given)
        if not all(isinstance(answer, Masked) for answer in answers):
            raise RuntimeError(f"not all pairs were masked: {answers}")

    if arguments.flat:
        process = psutil.Process()
        masked()
        before = process.memory_info().rss
        for _ in range(-(-arguments.flat // arguments.pairs)):
            masked()
        after = process.memory_info().rss
        print(
            f"resident memory: {before / 2**20:,.0f} MiB after {arguments.pairs} pairs, "
            f"{after / 2**20:,.0f} MiB after {arguments.flat:,} more: ratio {after / before:.3f}"
        )
        return

    def detecting_twice() -> None:
        check.with_found(requests)
        masked()

    alone, by_image = "masker", "image by image"
    again, kept = "check, then masker, which detects again", "check, then masker with the kept detections"
    turns: dict[str, Callable[[], Any]] = {
        alone: masked,
        by_image: lambda: reference.mask(requests),
        again: detecting_twice,
        kept: lambda: masked(check.with_found(requests)),
    }
    passes = {}
    for name, turn in turns.items():
        before = check.passes
        turn()
        passes[name] = (check.passes - before) / arguments.pairs
    seconds = [{name: timed(turn) for name, turn in turns.items()} for _ in range(arguments.repeats)]

    def rates(name: str, over: str) -> list[float]:
        """Return pairs per second, and the rate of ``over`` divided by it."""
        return [
            statistics.median(arguments.pairs / turn[name] for turn in seconds),
            statistics.median(turn[name] / turn[over] for turn in seconds),
        ]

    where = torch.cuda.get_device_name() if arguments.device == "cuda" else f"CPU, {arguments.threads} threads"
    print_table(
        f"{arguments.model}, {arguments.size} px, batches of {arguments.batch_size} images, {BOXES} boxes, "
        f"{arguments.dtype}, {where} (median of {arguments.repeats} turns of {arguments.pairs} pairs)",
        ["", "pairs/s", "our rate over it"],
        [[name, *rates(name, alone)] for name in (alone, by_image)],
    )
    print_table(
        "the validity check and the masker",
        ["", "detector passes per pair", "pairs/s", "rate of the last over it"],
        [[name, passes[name], *rates(name, kept)] for name in (again, kept)],
    )


if __name__ == "__main__":
    main()
