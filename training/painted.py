"""Training sets of painted scenes: painted once, stored in chunks, read as arrays.

    python -m training.painted FOLDER          # optional: each training paints missing scenes

Scenes have no sensor noise, because latents cannot represent it. Trainings of classifiers add noise themselves.
"""

import argparse
import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from magicseg.miniature.caption import SceneSpec
from magicseg.stages.describe.words import COLOURS, LIGHTS, SCENES
from training import scenes
from training.latents import PATCH
from training.places import areas_of, columns_of
from training.tokens import token_ids, write_tokenizer

CHUNK = 1024  # scenes
UNKNOWN = -100  # the index that cross-entropy ignores

SCENE_WORDS = tuple(scene.word for scene in SCENES)
LIGHT_WORDS = tuple(light.word for light in LIGHTS)


@dataclass(frozen=True)
class Answers:
    """The labels from N captions.

    ``present``: float (N, nouns). ``columns``, ``areas``: float (N, nouns, 2), the ranges of each object's position
    and area (`training.places`), 0 for absent objects. ``colour`` (only of single objects), ``scene``, ``light``:
    int64 (N), or `UNKNOWN`.
    """

    present: Tensor
    columns: Tensor
    areas: Tensor
    colour: Tensor
    scene: Tensor
    light: Tensor

    def pick(self, chosen: Tensor) -> "Answers":
        """Return the labels of some scenes."""
        return Answers(*(getattr(self, each.name)[chosen] for each in fields(self)))


@dataclass(frozen=True)
class Painted:
    """N scenes.

    ``images``: uint8 (N, 3, size, size). ``tokens``: int16 (N, L), of the captions. ``answers``: the labels from the
    captions. ``masks``: uint8 (N, size, size), 0 or the noun's number from 1, for detector, segmenter and denoiser.
    """

    images: Tensor
    masks: Tensor
    tokens: Tensor
    answers: Answers

    def __len__(self) -> int:
        return len(self.images)

    @property
    def objects(self) -> Tensor:
        """Return the number of object pixels in each 4 x 4 square: uint8 (N, size / 4, size / 4)."""
        squares = (self.masks > 0).unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)
        return squares.sum((3, 4)).to(torch.uint8)

    def to(self, device: str) -> Self:
        """Return the scenes on another device."""
        answers = Answers(*(getattr(self.answers, each.name).to(device) for each in fields(Answers)))
        return type(self)(self.images.to(device), self.masks.to(device), self.tokens.to(device), answers)


def answers_to(specs: Sequence[SceneSpec]) -> Answers:
    """Return the labels of parsed captions. The colour is known only for scenes with one object."""
    present = torch.zeros(len(specs), len(scenes.nouns()))
    columns, areas = torch.zeros(2, *present.shape, 2)
    for row, spec in enumerate(specs):
        crowded = len(spec.objects) > 1
        for item in spec.objects:
            entry = row, scenes.nouns().index(item.noun)
            present[entry] = 1
            columns[entry] = torch.tensor(columns_of(item, crowded=crowded))
            areas[entry] = torch.tensor(areas_of(item, crowded=crowded))
    colours = [COLOURS.index(spec.objects[0].colour or "") if len(spec.objects) == 1 else UNKNOWN for spec in specs]
    return Answers(
        present=present,
        columns=columns,
        areas=areas,
        colour=torch.tensor(colours),
        scene=torch.tensor([SCENE_WORDS.index(spec.scene) for spec in specs]),
        light=torch.tensor([LIGHT_WORDS.index(spec.light or "") for spec in specs]),
    )


def painted(folder: Path, tokenizer: Any, *, count: int, seed: int, workers: int = 0) -> Painted:
    """Return the first ``count`` scenes, rounded down to whole chunks, of the seed's training set.

    Chunks that the folder lacks are painted.
    """
    chunks = folder / f"scenes-{seed}"
    chunks.mkdir(parents=True, exist_ok=True)
    files = [chunks / f"{number:04d}.safetensors" for number in range(count // CHUNK)]
    lacking = [number for number, file in enumerate(files) if not file.is_file()]
    paint = functools.partial(scenes.scene, seed=seed, stream="train", noise=0.0)
    numbers = [at for number in lacking for at in range(number * CHUNK, (number + 1) * CHUNK)]
    made = scenes.ahead(paint, numbers, workers)
    for number in lacking:
        _write([next(made) for _ in range(CHUNK)], tokenizer, files[number])
    parts = [load_file(file) for file in files]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    return Painted(
        images=whole["images"],
        masks=whole["masks"],
        tokens=whole["tokens"],
        answers=Answers(*(whole[each.name] for each in fields(Answers))),
    )


def _write(made: Sequence[scenes.Scene], tokenizer: Any, file: Path) -> None:
    answers = answers_to([one.spec for one in made])
    tensors = {
        "images": torch.from_numpy(np.stack([one.image for one in made])).permute(0, 3, 1, 2).contiguous(),
        "masks": torch.from_numpy(np.stack([one.mask for one in made])),
        "tokens": token_ids(tokenizer, [one.caption for one in made]).short(),
        **{each.name: getattr(answers, each.name) for each in fields(answers)},
    }
    part = file.with_suffix(".part")
    save_file(tensors, part)
    part.replace(file)


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--scenes", type=int, default=16_384)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()
    tokenizer = write_tokenizer(given.data / "tokenizer")
    made = painted(given.data, tokenizer, count=given.scenes, seed=given.seed, workers=given.workers)
    print(f"{given.data}: {len(made)} scenes of seed {given.seed}")


if __name__ == "__main__":
    main()
