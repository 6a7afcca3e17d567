"""Copy exported and measured weights into the package, with model cards and digests.

    python -m training.publish WORK magicseg/miniature/weights

WORK is the folder of ``training/everything.sh``.
"""

import argparse
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from training.loop import STATE, Plan, seconds_of

LARGEST = 15_000_000  # bytes in total

_CARD = """---
license: apache-2.0
library_name: {library}
tags: [synthetic, miniature]
---
# {title}

{what}

**Data.** {scenes} scenes of the project's own painter (`magicseg.miniature`), 64 x 64 pixels: ten classes of
objects, eight colours, three sizes, three places, seven scenes, five lights; about a fifth without an object. The
captions are those of the grammar captioner. No photograph, and nothing that others made, was used.

**Training.** `training/{script}.py` in the project's repository{also}: {training}. The commands, and what
they give on another machine: `training/README.md`.

**Measures** (`training/measure.py`; captions and scenes are not those of the training set):

{measures}

**Limits.** It knows the painter's world and nothing else: other words are spelt in letters that it never learnt,
other sizes than 64 pixels were never seen, and its mistakes are those of a small model. {limits}It is made to
exercise and to study a pipeline, not to make or to read pictures.

**Licence.** Apache-2.0, as the project.
"""


def training_of(folder: Path) -> str:
    """Return a sentence with steps, batch size, time and parameters of a training."""
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    plan, steps = Plan(**state["plan"]), state["step"]  # settings that older checkpoints lack have their defaults
    minutes = seconds_of(folder) / 60
    return (
        f"{steps:,} steps of {plan.batch_size} in {minutes:,.0f} minutes on one "
        f"{'GPU' if plan.device == 'cuda' else 'CPU core'} ({plan.precision}), "
        f"{'Muon and ' if plan.muon else ''}AdamW at {plan.learning_rate:g}, "
        f"moving average of the weights, seed {plan.seed}"
    )


def measures_of(measured: Mapping[str, float], names: Mapping[str, str]) -> str:
    """Return a Markdown table of measures."""
    rows = [f"| {text} | {measured[name]:.4g} |" for name, text in names.items()]
    return "\n".join(["| measure | value |", "|---|---|", *rows])


_GENERATOR = {
    "pairs": "pairs",
    "steps": "steps of the sampler",
    "guidance": "guidance",
    "class": "the judge finds the asked class in the image",
    "colour": "its colour is the asked one",
    "scene": "the scene is the asked one",
    "light": "the light is the asked one",
    "counterfactual_empty": "the judge finds no object in the counterfactual",
    "counterfactual_scene": "its scene is the asked one",
    "painted_class": "for comparison, painted scenes: class",
    "painted_colour": "painted scenes: colour",
    "painted_scene": "painted scenes: scene",
    "painted_counterfactual_empty": "painted scenes: no object in the empty scene",
    "equal_outside": "pixels that differ by at most 12 of 255 in a pair, outside its largest difference",
    "difference_outside": "mean difference there, 0 to 255",
    "nearest_training": "distance to the nearest training image (median, 0 to 255)",
    "nearest_training_of_new_scenes": "the same of new painted scenes",
    "copies": "images nearer to a training image than 99 % of new scenes are",
}
_CLIP = {
    "clip_zero_shot": "zero-shot accuracy, ten classes",
    "image_to_text": "an image finds its own caption",
    "text_to_image": "a caption finds its own image",
    "candidates": "among so many",
    "clip_points_at_object": "the patch most like the class text touches the object",
}


def publish(work: Path, target: Path, scenes: int) -> None:
    """Copy the weights, and write cards and digests. Raises: ValueError if the weights exceed `LARGEST`."""
    weights = work / "weights"
    measured = json.loads((weights / "measures.json").read_text(encoding="utf-8"))
    cards = {
        "diffusion": _CARD.format(
            library="diffusers",
            title="A small Stable Diffusion of painted scenes",
            what="A latent diffusion pipeline in diffusers' format (`StableDiffusionPipeline`), loaded by "
            "`AutoPipelineForText2Image.from_pretrained`, on a CPU with `torch_dtype=torch.float32`. With equal "
            "initial noise, a caption and the caption of the empty scene give a picture and its counterfactual. "
            "The preset `miniature` takes 6 steps and guidance 2.",
            scenes=f"{scenes:,}",
            script="denoiser",
            also=" and `training/autoencoder.py`",
            training=f"autoencoder: {training_of(work / 'autoencoder')}; UNet with text encoder: "
            f"{training_of(work / 'denoiser')}; until the cooldown, objects weigh more in its loss, by the painter's "
            "masks",
            measures=measures_of(measured, _GENERATOR),
            limits="Captions of more than two objects are cut. ",
        ),
        "clip": _CARD.format(
            library="open_clip",
            title="A small CLIP of painted scenes",
            what="A vision transformer with a text tower in open_clip's format, loaded by `local-dir:`. "
            'Its texts for classes are "a photo of a car", and for none "a photo of a empty scene".',
            scenes=f"{scenes:,}",
            script="clip",
            also="",
            training="captions against images; class texts against images and, by captions' words of place and size, "
            "against patches; no masks; "
            f"{training_of(work / 'clip')}",
            measures=measures_of(measured, _CLIP),
            limits="",
        ),
    }
    for name, card in cards.items():
        shutil.rmtree(target / name, ignore_errors=True)
        shutil.copytree(weights / name, target / name, copy_function=shutil.copyfile)
        (target / name / "README.md").write_text(card, encoding="utf-8")
    files = sorted(file for name in cards for file in (target / name).rglob("*") if file.is_file())
    size = sum(file.stat().st_size for file in files)
    if size > LARGEST:
        raise ValueError(f"{size:,} bytes of weights; at most {LARGEST:,} are shipped")
    digests = {file.relative_to(target).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    (target / "digests.json").write_text(json.dumps(digests, indent=2) + "\n", encoding="utf-8")
    (target / "measures.json").write_text(json.dumps(measured, indent=2) + "\n", encoding="utf-8")
    print(f"{target}: {size:,} bytes")


def main() -> None:
    """Run the program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--scenes", type=int, default=16_384, help="number of training scenes, for the cards")
    given = parser.parse_args()
    publish(given.work, given.target, given.scenes)


if __name__ == "__main__":
    main()
