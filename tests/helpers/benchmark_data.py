"""Small data sets in the benchmarks' official layouts, and heads that need no weights."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

from magicseg.data.ground_truth import open_data_set
from magicseg.evaluate.benchmark import evaluate_benchmark

SIZE = (24, 36)


class ColourHead:
    """A head that scores queries by the distance of a pixel's colour to the query's colour, times ``sharp``."""

    stride = 4
    window_average = "logits"

    def __init__(self, name="colour", sharp=8.0, soft=False):
        self.name, self.sharp, self.soft = name, sharp, soft
        self.identity = {"sharp": sharp, "soft": soft}
        self.score_kinds = ("log-odds", "cosine") if soft else ("log-odds",)
        self.prepared = 0
        self.crops = 0

    def prepare(self, classes):
        self.prepared += 1
        self.colours = torch.tensor([colour_of(number) for number in range(1, len(classes) + 1)]) / 255

    def logits(self, crops):
        self.crops += len(crops)
        pixels = crops.float() / 255
        away = (pixels[:, None] - self.colours[None, :, :, None, None]).abs().sum(dim=2)
        return self.sharp * (0.3 - away)

    def score(self, logits, chosen, kind):
        best = logits.gather(-3, chosen.unsqueeze(-3)).squeeze(-3)
        if kind == "cosine":
            return best / self.sharp
        return best - logits.scatter(-3, chosen.unsqueeze(-3), -torch.inf).logsumexp(-3) if self.soft else best


def colour_of(number):
    """Return a colour for a class number up to 255, far from its neighbours' colours; 0 is black."""
    return [number * 67 % 256, number * 149 % 256, number * 211 % 256]


def image_of(numbers, noise=0, seed=0):
    """Return an image with class numbers in their colours: uint8 (H, W, 3)."""
    palette = np.array([colour_of(number) for number in range(256)], np.int64)
    coloured = palette[np.minimum(numbers, 255)]
    return np.clip(coloured + np.random.default_rng(seed).integers(-noise, noise + 1, coloured.shape), 0, 255).astype(
        np.uint8
    )


def blobs(classes, seed, size=SIZE):
    """Return class numbers 0 to ``classes`` in blocks, int64 (H, W)."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, classes + 1, (-(-size[0] // 6), -(-size[1] // 6)))
    return blocks.repeat(6, 0).repeat(6, 1)[: size[0], : size[1]]


def save_png(path: Path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)


def save_image(path: Path, numbers, noise=0, seed=0):
    """Save an image as PNG, or as JPEG of the best quality if the layout requires JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(image_of(numbers, noise, seed))
    if path.suffix == ".jpg":
        image.save(path, quality=100, subsampling=0)
    else:
        image.save(path)


def raw_of(numbers, protocol, layout, ignored):
    """Return the values of a ``layout``'s label file for class numbers. ``ignored``: mask of ignored pixels."""
    values = np.array([0, *(layout.class_values or range(1, len(protocol.labels) + 1))])
    background = next(iter(layout.background_values), None)
    void = next(iter(layout.ignored_values), None)
    values[0] = background if background is not None else void
    raw = values[numbers]
    if void is not None:
        raw[ignored] = void
    return raw


def make(protocol, folder: Path, count=5, *, layout=None, seed=0, size=SIZE, noise=0):
    """Write a data set in the protocol's layout number ``layout`` (the first with {name}).

    Returns: the true class numbers by image name, with the ignore value for ignored pixels.
    """
    if layout is None:
        layout = next(number for number, item in enumerate(protocol.labels_in) if "{name}" in item.path)
    kind = protocol.labels_in[layout]
    truths = {}
    for number in range(count):
        name = f"town{number % 2}/img_{number:06}" if protocol.name == "cityscapes" else f"img{number:06}"
        numbers = blobs(len(protocol.labels), seed + number, size)
        ignored = np.zeros(size, bool)
        ignored[:2, :5] = bool(kind.ignored_values)
        raw = raw_of(numbers, protocol, kind, ignored)
        filled = {"{split}": protocol.split, "{name}": name}
        paths = [folder / protocol.images[0], folder / kind.path]
        for key, value in filled.items():
            paths = [Path(str(path).replace(key, value)) for path in paths]
        save_image(paths[0], numbers, noise, seed + number)
        if paths[1].suffix == ".mat":
            paths[1].parent.mkdir(parents=True, exist_ok=True)
            savemat(paths[1], {"LabelMap": raw.astype(np.uint16)}, do_compression=True)
        else:
            save_png(paths[1], raw)
        lost = ignored if protocol.counts_background else ignored | (numbers == 0)
        truths[name] = np.where(lost, protocol.ignore_value, numbers)
    if protocol.split_lists:
        path = folder / protocol.split_list
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{name}\n" for name in truths))
    return truths


def evaluate(head, protocol, folder: Path, out: Path, **options):
    """Score a head on the data set in a folder. Returns: a `magicseg.evaluate.benchmark.BenchmarkOutcome`."""
    return evaluate_benchmark(head, open_data_set(protocol, folder), out, **options)


def make_instances(folder: Path, annotations, *, categories, size=SIZE, split="val2017"):
    """Write a COCO folder. ``annotations``: by image name, a list of (category id, segmentation, iscrowd)."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    images, drawn = [], []
    for number, (name, items) in enumerate(annotations.items(), start=1):
        images.append({"id": number, "file_name": f"{name}.jpg", "height": size[0], "width": size[1]})
        save_image(folder / split / f"{name}.jpg", blobs(3, number, size))
        drawn += [
            {
                "id": len(drawn) + place,
                "image_id": number,
                "category_id": category,
                "segmentation": shape,
                "iscrowd": crowd,
            }
            for place, (category, shape, crowd) in enumerate(items)
        ]
    content = {"images": images, "annotations": drawn, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
