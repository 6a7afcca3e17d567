"""``magicseg mask --images`` on real photographs, with models of the released layouts (and random weights)."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def photographs(real_data, tmp_path):
    """A folder of real photographs: ten of different sizes, odd ones first."""
    found = sorted(real_data.glob("VOCdevkit/VOC2012/JPEGImages/*.jpg"))
    by_size = {}
    for path in found:
        with Image.open(path) as picture:
            by_size.setdefault(picture.size, path)
    odd_first = sorted(by_size, key=lambda size: (-(size[0] % 2) - size[1] % 2, size))
    folder = tmp_path / "mine"
    folder.mkdir()
    for size in odd_first[:10]:
        shutil.copy(by_size[size], folder)
    return folder


@pytest.mark.slow
def test_real_photographs_get_masks_of_their_size(photographs, tmp_path, magicseg, checkpoint):
    def choice(name):
        options = {"model": str(checkpoint(name)), "device": "cpu", "dtype": "float32"}
        return {"backend": "transformers", "options": options}

    options = {
        "detector": choice("grounding_dino"),
        "segmenter": choice("sam"),
        # Random weights are sure of nothing: whatever they find counts.
        "box_threshold": 0.01,
        "text_threshold": 0.01,
        "max_objects": 3,
        "min_island": 0,
        "min_area": 0,
        "max_area": 1,
    }
    command = ("mask", "--images", "mine", "--labels", "cat, dog, chair", "--out", "out", "--preset", "painted")
    chosen = ("--set", "mask.backend=detect-segment", "--set", f"mask.options={json.dumps(options)}")
    done = magicseg(*command, *chosen)
    assert done.code == 0, done.err
    entries = [json.loads(line) for line in (tmp_path / "out" / "masks.jsonl").read_text().splitlines()[1:]]
    assert [entry["image"] for entry in entries] == sorted(path.name for path in photographs.iterdir())
    # A label may lose all its pixels to the others.
    assert {entry["status"] if "reason" not in entry else entry["reason"] for entry in entries} <= {
        "kept",
        "too-small",
    }
    kept = [entry["image"] for entry in entries if entry["status"] == "kept"]
    assert len(kept) > len(entries) / 2
    ids = set()
    for name in kept:
        size = Image.open(photographs / name).size
        mask = Image.open(tmp_path / "out" / f"{name}.png")
        shown = Image.open(tmp_path / "out" / "overlays" / f"{name}.jpg")
        assert (mask.size, shown.size) == (size, size)
        shown.load()
        ids |= set(np.unique(np.asarray(mask)).tolist())
    assert ids & {1, 2, 3}
    assert ids <= {0, 1, 2, 3}

    written = (tmp_path / "out" / "masks.jsonl").read_bytes()
    assert magicseg(*command, *chosen).code == 0
    assert (tmp_path / "out" / "masks.jsonl").read_bytes() == written, "all of it was done"
