"""How 16-bit types change boxes and masks, compared with float32.

An OWL-ViT and a SAM of under a million parameters are trained on painted scenes for a few minutes, so that their
scores, boxes and masks mean something. A GroundingDINO has random weights: its boxes only show how rounding moves
them. All are loaded and called like those of a run, on the CPU: ``auto`` stands for what a GPU would compute in,
with bfloat16 and with float16. Kernels of a GPU round in another order. Nothing is downloaded.

    python benchmarks/mask_dtypes.py
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import transformers as tf
from measure import print_table
from torchvision.ops import box_convert, box_iou, generalized_box_iou_loss

from magicseg.backends import DetectRequest, Instances, SegmentRequest
from magicseg.labels import Vocabulary, load_vocabulary
from magicseg.miniature.held_out_scenes import OTHER_SCENES, heldout_scene
from magicseg.miniature.painter import Painted
from magicseg.vision import inference
from magicseg.vision.batches import HasBatch
from magicseg.vision.finder import select_instances
from magicseg.vision.model_options import DetectorOptions, SegmenterOptions
from magicseg.vision.transformers_detector import load_detector
from magicseg.vision.transformers_segmenter import load_segmenter

sys.path.append(str(Path(__file__).parents[1] / "tests"))

SIZE = 64
BATCH = 16
THRESHOLDS = SimpleNamespace(box_threshold=0.3, text_threshold=0.25, nms_iou=0.7, max_objects=20)
TYPES = {  # the option, and the 16-bit type that a GPU would choose for auto
    "float32": ("float32", torch.bfloat16),
    "bfloat16": ("bfloat16", torch.bfloat16),
    "float16": ("float16", torch.float16),
    "auto, bfloat16": ("auto", torch.bfloat16),
    "auto, float16": ("auto", torch.float16),
}


def scenes(vocabulary: Vocabulary, count: int, seed: int) -> list[Painted]:
    """Paint scenes with one or two objects."""
    return [heldout_scene(i, vocabulary=vocabulary, seed=seed, max_objects=2, size=SIZE) for i in range(count)]


def truth(scene: Painted) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return ids (n,), boxes (n, 4) in pixels, and masks (n, height, width) of a scene's visible objects."""
    ids = [id_ for id_ in np.unique(scene.mask).tolist() if 0 < id_ < 1000 and (scene.mask == id_).sum() > 8]
    masks = np.stack([scene.mask == id_ for id_ in ids]) if ids else np.zeros((0, SIZE, SIZE), bool)
    corners = [(np.flatnonzero(one.any(0)), np.flatnonzero(one.any(1))) for one in masks]
    boxes = np.array([[x[0], y[0], x[-1] + 1, y[-1] + 1] for x, y in corners], np.float32).reshape(-1, 4)
    return np.array(ids, np.int64), boxes, masks


def fit(model: torch.nn.Module, loss_of: Callable[[list[int]], torch.Tensor], count: int, steps: int) -> None:
    """Train a model. Args: loss_of: the loss of the scenes with these numbers."""
    for values in (each for each in model.parameters() if each.ndim > 1):  # the libraries' values suit wide layers
        torch.nn.init.normal_(values, std=max(values[0].numel(), 2) ** -0.5)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    random = np.random.default_rng(0)
    model.train()
    for _ in range(steps):
        loss = loss_of(random.choice(count, BATCH, replace=False).tolist())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    model.eval()


def train_detector(folder: Path, vocabulary: Vocabulary, painted: Sequence[Painted], steps: int) -> None:
    """Train an OWL-ViT: the patch at an object's centre is its box."""
    from helpers.tiny_pipelines import clip_tokenizer

    tokenizer = clip_tokenizer(folder / "tokenizer")
    tokenizer.model_max_length = 32
    tower = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4}
    text = tf.OwlViTTextConfig(
        vocab_size=len(tokenizer), max_position_embeddings=32, eos_token_id=None, num_hidden_layers=1, **tower
    )
    vision = tf.OwlViTVisionConfig(image_size=SIZE, patch_size=8, num_hidden_layers=4, **tower)
    model = tf.OwlViTForObjectDetection(
        tf.OwlViTConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64)
    )
    processor = tf.OwlViTProcessor(tf.OwlViTImageProcessor(size={"height": SIZE, "width": SIZE}), tokenizer)
    names = [f"a photo of a {label.name}" for label in vocabulary.labels]
    queries = tokenizer(names * BATCH, padding="max_length", max_length=32, return_tensors="pt")
    pixels = processor.image_processor(images=[one.image for one in painted], return_tensors="pt")["pixel_values"]
    known = [truth(one) for one in painted]
    grid = SIZE // 8

    def loss_of(chosen: list[int]) -> torch.Tensor:
        output = model(pixel_values=pixels[chosen], **queries)
        classes = torch.zeros_like(output.logits)
        found, wanted = [], []
        for row, number in enumerate(chosen):
            ids, boxes, _ = known[number]
            for id_, box in zip(ids.tolist(), torch.from_numpy(boxes) / SIZE, strict=True):
                x, y = ((box[:2] + box[2:]) / 2 * grid).long().clamp(max=grid - 1).tolist()
                classes[row, y * grid + x, id_ - 1] = 1
                found.append(output.pred_boxes[row, y * grid + x])
                wanted.append(box)
        corners = box_convert(torch.stack(found), "cxcywh", "xyxy")
        target = torch.stack(wanted)
        far = F.l1_loss(corners, target) * 5 + generalized_box_iou_loss(corners, target, reduction="mean")
        missed = F.binary_cross_entropy_with_logits(output.logits, classes, reduction="none")
        return far + (missed * (1 + 4 * classes)).sum() / len(wanted)

    fit(model, loss_of, len(painted), steps)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def train_segmenter(folder: Path, painted: Sequence[Painted], steps: int) -> None:
    """Train a SAM on the true boxes."""
    vision = tf.SamVisionConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
        global_attn_indexes=[0, 1, 2],
        window_size=0,
        output_channels=32,
        mlp_dim=128,
        num_pos_feats=16,
    )
    prompts = tf.SamPromptEncoderConfig(hidden_size=32, image_size=SIZE, patch_size=8, mask_input_channels=16)
    decoder = tf.SamMaskDecoderConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_dim=64, iou_head_hidden_dim=32
    )
    model = tf.SamModel(
        tf.SamConfig(
            vision_config=vision.to_dict(),
            prompt_encoder_config=prompts.to_dict(),
            mask_decoder_config=decoder.to_dict(),
        )
    )
    images = tf.SamImageProcessor(
        size={"longest_edge": SIZE},
        pad_size={"height": SIZE, "width": SIZE},
        mask_size={"longest_edge": SIZE // 2},
        mask_pad_size={"height": SIZE // 2, "width": SIZE // 2},
    )
    pixels = images(images=[one.image for one in painted], return_tensors="pt")["pixel_values"]
    known = [truth(one) for one in painted]

    def loss_of(chosen: list[int]) -> torch.Tensor:
        boxes = torch.stack([torch.from_numpy(known[number][1][:1]) for number in chosen])
        masks = torch.stack([torch.from_numpy(known[number][2][0]) for number in chosen]).float()
        output = model(pixel_values=pixels[chosen], input_boxes=boxes, multimask_output=False)
        logits = F.interpolate(output.pred_masks[:, 0], size=(SIZE, SIZE), mode="bilinear")[:, 0]
        inside = logits.sigmoid()
        overlap = (2 * (inside * masks).sum((1, 2)) + 1) / (inside.sum((1, 2)) + masks.sum((1, 2)) + 1)
        return F.binary_cross_entropy_with_logits(logits, masks) + 1 - overlap.mean()

    fit(model, loss_of, len(painted), steps)
    model.save_pretrained(folder)
    tf.SamProcessor(images).save_pretrained(folder)


def loaded(load: Callable[..., Any], options: type, folder: Path, name: str) -> Any:
    """Load a model as a run would, in one of `TYPES`."""
    dtype, gpu_dtype = TYPES[name]
    inference.gpu_dtype = lambda: gpu_dtype
    cpu = options(model=str(folder), device="cpu")
    return load(cpu.model_copy(update={"dtype": dtype}), folder, HasBatch(BATCH))


def compare_boxes(found: Sequence[Instances], exact: Sequence[Instances]) -> list[object]:
    """Return images with other labels, boxes, boxes of IoU below 0.99, and the error of a side in % of the image."""
    other, ious, errors = 0, [], []
    for one, reference in zip(found, exact, strict=True):
        if sorted(one.labels) != sorted(reference.labels):
            other += 1
            continue
        if not len(one):
            continue
        iou = box_iou(torch.from_numpy(one.boxes), torch.from_numpy(reference.boxes)).numpy()
        iou[one.labels[:, None] != reference.labels] = -1
        partner = iou.argmax(axis=0)
        ious += iou.max(axis=0).tolist()
        errors += np.abs(one.boxes[partner] - reference.boxes).max(axis=1).tolist()
    percent = 100 * np.array(errors) / SIZE
    return [other, len(ious), sum(iou < 0.99 for iou in ious), float(np.median(percent)), float(percent.max())]


def intersection_over_union(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the IoU of masks (n, height, width), by mask."""
    both, either = (one & other).sum((1, 2)), (one | other).sum((1, 2))
    return np.where(either, both / np.maximum(either, 1), 1.0)


def main() -> None:
    """Train, compare, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=300, help="to compare on")
    parser.add_argument("--steps", type=int, default=1000, help="of training, of each model")
    arguments = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    tf.utils.logging.set_verbosity_error()
    tf.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    vocabulary = load_vocabulary("miniature")
    shown = [one for one in scenes(vocabulary, arguments.images, 0) if len(truth(one)[0])]
    learned = [one for one in scenes(vocabulary, 1500, OTHER_SCENES) if len(truth(one)[0])]
    wanted = [
        DetectRequest(image=one.image, labels=tuple(map(vocabulary.by_id, truth(one)[0].tolist()))) for one in shown
    ]
    prompts = [SegmentRequest(image=one.image, boxes=truth(one)[1]) for one in shown]
    masks = np.concatenate([truth(one)[2] for one in shown])

    with tempfile.TemporaryDirectory() as temporary:
        from helpers import tiny_detectors

        folder = Path(temporary)
        train_detector(folder / "owlvit", vocabulary, learned, arguments.steps)
        train_segmenter(folder / "sam", learned, arguments.steps)
        tiny_detectors.build("grounding_dino", folder)

        rows, nearest, outlines = [], [], []
        for name in TYPES:
            detected = loaded(load_detector, DetectorOptions, folder / "owlvit", name).detect(wanted)
            objects = [select_instances(one, THRESHOLDS) for one in detected]
            dino = loaded(load_detector, DetectorOptions, folder / "grounding_dino", name).detect(wanted)
            segments = loaded(load_segmenter, SegmenterOptions, folder / "sam", name).segment(prompts)
            inside = np.concatenate([one.logits > 0 for one in segments])
            if name == "float32":
                exact, exact_dino, exact_inside = objects, dino, inside
            rows.append([name, *compare_boxes(objects, exact)])
            errors = [
                np.abs(one.boxes[:, None] - other.boxes[None]).max(2).min(1)
                for one, other in zip(dino, exact_dino, strict=True)
            ]
            percent = 100 * np.concatenate(errors) / SIZE
            nearest.append([name, float(np.median(percent)), float(np.quantile(percent, 0.95))])
            ious = intersection_over_union(inside, exact_inside)
            right = float(intersection_over_union(inside, masks).mean())
            outlines.append([name, right, float(ious.mean()), float(ious.min()), int((ious < 0.99).sum())])
    print_table(
        f"OWL-ViT, trained: {len(shown)} images",
        ["dtype", "images with other labels", "boxes compared", "IoU < 0.99", "side, median %", "side, max %"],
        rows,
    )
    print_table("GroundingDINO, random: side of the nearest box", ["dtype", "median %", "95 % quantile"], nearest)
    print_table(
        f"SAM, trained: {len(masks)} masks",
        ["dtype", "IoU with the truth", "IoU with float32", "the least", "IoU < 0.99"],
        outlines,
    )


if __name__ == "__main__":
    main()
