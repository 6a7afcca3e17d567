"""Labelling a large image does not need memory for the logits of all labels at all pixels.

The table shows the peak resident memory of labelling one image with 150 labels, in addition to the memory for a tiny
image (libraries and model). magicseg labels one stripe of rows at a time. The reference works like mmsegmentation: it
keeps the logits of all labels at full size, averages windows there, and applies sigmoid and maximum to the whole
array. The ratio is the memory over labels x pixels x 4 bytes, the size of one such array. The model is small, has
random weights and runs on one thread. Windows are 512 pixels wide.

    python benchmarks/large_images.py
    python benchmarks/large_images.py --sizes 1600x1200 --labels 20
"""

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from measure import in_fresh_process, peak_mib, print_table, timed

from magicseg.model.open_vocabulary import load_model
from magicseg.model.saved_model import save_segmenter
from magicseg.model.segmenter import build_segmenter
from magicseg.model.sliding_window import padded_size, window_places

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from helpers.tiny_models import tiny_settings

_WINDOW, _STRIDE = 512, 426


def _by_stripes(folder: Path, image: np.ndarray, labels: list[str], window: int | None) -> np.ndarray:
    return load_model(folder).segment(image, labels, window=window, scores=False).labels


def _reference(folder: Path, image: np.ndarray, labels: list[str], window: int | None) -> np.ndarray:
    model = load_model(folder).segmenter
    with torch.inference_mode():
        text = model.encode_classes(labels)
        size = image.shape[:2]
        padded = padded_size(size, window=window, multiple=model.stride)
        pixels = F.pad(
            torch.from_numpy(image).permute(2, 0, 1)[None].float(),
            (0, padded[1] - size[1], 0, padded[0] - size[0]),
            mode="replicate",
        )[0].to(torch.uint8)
        height, width = (side if window is None else min(side, window) for side in padded)
        total, counts = torch.zeros(len(labels), *padded), torch.zeros(padded)
        for y, x in window_places(padded, (height, width), _STRIDE):
            total[:, y : y + height, x : x + width] += model(
                pixels[None, :, y : y + height, x : x + width], text
            ).logits[0]
            counts[y : y + height, x : x + width] += 1
        scores = (total / counts)[:, : size[0], : size[1]].sigmoid()
        best, labels_of_pixels = scores.max(dim=0)
        return torch.where(best < 0.5, 0, labels_of_pixels + 1).numpy()


def _measured(which: str, folder: Path, size: tuple[int, int], count: int, window: int | None) -> tuple[float, float]:
    """Return the peak MiB in addition to a tiny image's, and the seconds."""
    torch.set_num_threads(1)
    call = {"magicseg": _by_stripes, "reference": _reference}[which]
    labels = [f"label {number}" for number in range(count)]
    images = [np.random.default_rng(0).integers(0, 256, (*side, 3), np.uint8) for side in ((64, 64), size)]
    call(folder, images[0], labels, window)
    before = peak_mib()
    seconds = timed(lambda: call(folder, images[1], labels, window))
    return peak_mib() - before, seconds


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=["1600x1200", "4000x3000"], metavar="WIDTHxHEIGHT")
    parser.add_argument("--labels", type=int, default=150)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--limit", type=float, default=8.0, help="GiB; skip references that need more")
    arguments = parser.parse_args()
    settings = tiny_settings(prompt_tokens=0, decoder_width=32, image_size=512, stride=16, width=32, embed_dim=32)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        save_segmenter(build_segmenter(settings, seed=0), folder)
        for text in arguments.sizes:
            width, height = map(int, text.split("x"))
            array = arguments.labels * width * height * 4 / 2**20
            for window in (_WINDOW, None):
                for which in ("magicseg", "reference"):
                    how = "whole" if window is None else f"window {window}"
                    if which == "reference" and 3 * array > arguments.limit * 1024:
                        rows.append([f"{text}, {how}", which, f"not run, about {3 * array:,.0f}", "about 3", ""])
                        continue
                    found = [
                        in_fresh_process(_measured, which, folder, (height, width), arguments.labels, window)
                        for _ in range(arguments.repeats)
                    ]
                    mib, seconds = (statistics.median(values) for values in zip(*found, strict=True))
                    rows.append([f"{text}, {how}", which, mib, mib / array, seconds])
    print_table(
        f"memory of one image with {arguments.labels} labels",
        ["", "", "MiB", "x labels x pixels x 4", "seconds"],
        rows,
    )


if __name__ == "__main__":
    main()
