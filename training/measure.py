"""Measures the learned models: what the judge finds in generated pairs, how varied they are, what the CLIP knows.

    python -m training.measure --diffusion DIRECTORY --clip DIRECTORY --judge FOLDER --json FILE --picture FILE
    python -m training.measure --run RUN --judge FOLDER

The pairs are made by the back end ``diffusers`` from captions of scenes that no training saw, or are those that a run
of the preset ``miniature`` kept.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import ImageFilter
from torch import Tensor

from magicseg.backends import DescribeRequest, Description, GenerateRequest, ImagePair
from magicseg.data.kept_samples import KeptSamples
from magicseg.miniature.caption import parse
from magicseg.run import Run
from magicseg.stages.describe.grammar import GrammarCaptioner
from magicseg.stages.generate.diffusion import DiffusersGenerator
from training import judge as judging
from training import scenes
from training.clip import TEMPLATE
from training.denoiser import SCENES
from training.painted import UNKNOWN, Answers, answers_to

Images = NDArray[np.uint8]  # (N, size, size, 3)

# What issue and model cards promise: at least these shares.
TARGETS = {
    "class": 0.90,
    "colour": 0.85,
    "scene": 0.85,
    "counterfactual_empty": 0.95,
    "clip_zero_shot": 0.90,
}
DIFFERENT = 12  # in any channel, 0 to 255: the pair-difference masker's own threshold
_AROUND = 5  # pixels, side of the square by which a found object grows


@dataclass(frozen=True)
class Sampling:
    """How the pairs are made."""

    steps: int = 20
    guidance: float = 3.0
    counterfactual: str = "rewrite"
    scheduler: str = "default"
    device: str = "cpu"


def requests(count: int, seed: int = 0) -> list[GenerateRequest]:
    """One object each, all classes equally often, captions of the grammar."""
    captioner = GrammarCaptioner(None, GrammarCaptioner.Options())
    labels = scenes.vocabulary().labels
    made = []
    for index in range(count):
        rng = scenes.counter_rng(seed, "measured captions", index)
        caption_seed, image_seed = (int(number) for number in rng.integers(0, 2**62, 2))
        own = (labels[index % len(labels)],)
        (told,) = captioner.describe([DescribeRequest(index=index, labels=own, seed=caption_seed)])
        assert isinstance(told, Description)
        made.append(
            GenerateRequest(
                index=index,
                labels=own,
                caption=told.caption,
                counterfactual=told.counterfactual,
                seed=image_seed,
            )
        )
    return made


def generate(folder: Path, wanted: Sequence[GenerateRequest], how: Sampling) -> list[ImagePair]:
    """The pairs, by the project's own back end with shared noise. Raises: ValueError if it rejects one."""
    options = DiffusersGenerator.Options(
        model=str(folder),
        steps=how.steps,
        guidance=how.guidance,
        scheduler=how.scheduler,
        counterfactual=how.counterfactual,
        noise="shared",
        device=how.device,
        dtype="float32",
    )
    answers = DiffusersGenerator(SimpleNamespace(size=scenes.SIZE, batch_size=16), options).generate(wanted)
    pairs = [answer for answer in answers if isinstance(answer, ImagePair)]
    if len(pairs) < len(answers):
        raise ValueError(f"{len(answers) - len(pairs)} of {len(answers)} pairs were rejected")
    return pairs


def shares_found(verdict: judging.Verdict, empties: judging.Verdict, answers: Answers) -> dict[str, float]:
    """Shares of images in which the judge finds what was asked for, and of empty images without any object."""
    asked = answers.present > 0
    found = verdict.present > 0
    shares = {"class": float((found | ~asked).all(dim=1).float().mean())}
    shares["class_alone"] = float((found == asked).all(dim=1).float().mean())
    for name in ("colour", "scene", "light"):
        wanted = getattr(answers, name)
        known = wanted != UNKNOWN
        shares[name] = float((getattr(verdict, name).argmax(dim=1) == wanted)[known].float().mean())
    shares["counterfactual_empty"] = float((~(empties.present > 0)).all(dim=1).float().mean())
    shares["counterfactual_scene"] = float((empties.scene.argmax(dim=1) == answers.scene).float().mean())
    return shares


def _judged(judge: judging.Judge, images: Images) -> judging.Verdict:
    return judging.judged(judge, torch.from_numpy(images).permute(0, 3, 1, 2))


def agreement(pairs: Sequence[ImagePair]) -> dict[str, float]:
    """How equal the two images of a pair are outside the object: the largest connected difference, grown a little.

    Returns: the mean over pairs of the share of equal pixels and of the mean difference (0 to 255) there, and of the
    object's share of the image.
    """
    from scipy.ndimage import label

    equal, difference, areas = [], [], []
    for pair in pairs:
        apart = np.abs(pair.image.astype(np.int16) - pair.counterfactual).max(axis=2)
        pieces, count = label(apart > DIFFERENT)
        where = np.zeros(apart.shape, dtype=np.uint8)
        if count:
            where = (pieces == np.bincount(pieces.ravel())[1:].argmax() + 1).astype(np.uint8) * 255
        grown = np.asarray(Pictures.fromarray(where).filter(ImageFilter.MaxFilter(_AROUND))) > 0
        if not grown.all():
            equal.append(float((apart[~grown] <= DIFFERENT).mean()))
            difference.append(float(apart[~grown].mean()))
        areas.append(float((where > 0).mean()))
    return {
        "equal_outside": float(np.mean(equal)) if equal else 0.0,
        "difference_outside": float(np.mean(difference)) if difference else 255.0,
        "object_area": float(np.mean(areas)),
    }


def nearest(images: Images, others: Images, *, skip_self: bool = False) -> NDArray[np.float64]:
    """Distance of each image to its nearest other: root mean square over pixels at half the size, 0 to 255."""
    first, second = (_half(each) for each in (images, others))
    square = first.square().sum(1)[:, None] + second.square().sum(1)[None] - 2 * first @ second.T
    if skip_self:
        square.fill_diagonal_(torch.inf)
    distances: NDArray[np.float64] = (square.clamp(min=0).min(dim=1).values / first.shape[1]).sqrt().numpy()
    return distances


def _half(images: Images) -> Tensor:
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double()
    return F.avg_pool2d(pixels, 2).flatten(1)


def variety(generated: Images, heldout: Images, trained: Images) -> dict[str, float]:
    """Distances to the nearest training image, and to the nearest of their own kind, beside those of new scenes.

    ``copies``: share of generated images nearer to a training image than 99 % of new painted scenes are.
    """
    to_trained, new_to_trained = nearest(generated, trained), nearest(heldout, trained)
    return {
        "nearest_training": float(np.median(to_trained)),
        "nearest_training_of_new_scenes": float(np.median(new_to_trained)),
        "copies": float((to_trained < np.quantile(new_to_trained, 0.01)).mean()),
        "nearest_other": float(np.median(nearest(generated, generated, skip_self=True))),
        "nearest_other_of_new_scenes": float(np.median(nearest(heldout, heldout, skip_self=True))),
    }


@torch.no_grad()
def clip_measures(folder: Path, count: int, seed: int = 0) -> dict[str, float]:
    """Of the CLIP in open_clip's format, on new scenes with one object.

    ``clip_zero_shot``: share whose class text is the best of ten. ``image_to_text``, ``text_to_image``: share whose
    own caption (image) is the best of all. ``clip_points_at_object``: share in which the patch that is most like
    the class text touches the object.
    """
    name = f"local-dir:{folder}"
    model: Any = open_clip.create_model(name).float().eval()
    tokenize = open_clip.get_tokenizer(name)
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))["preprocess_cfg"]
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    made = [scenes.scene(n, seed=seed, stream="measured", objects=(0, 1)) for n in range(count)]
    made = list({one.caption: one for one in made}.values())
    pixels = torch.from_numpy(np.stack([one.image for one in made])).permute(0, 3, 1, 2) / 255
    given = (pixels - mean) / std
    visual = model.visual
    tokens = torch.cat([visual.transformer(visual._embeds(part)) for part in torch.split(given, 64)])
    joint = F.normalize(visual.ln_post(tokens) @ visual.proj, dim=-1)
    image, patches = joint[:, 0], joint[:, 1:]
    classes = F.normalize(model.encode_text(tokenize([TEMPLATE.format(noun) for noun in scenes.nouns()])), dim=-1)
    wanted = torch.tensor([scenes.nouns().index(one.spec.objects[0].noun) for one in made])
    texts = torch.cat([model.encode_text(tokenize([one.caption])) for one in made])
    likeness = image @ F.normalize(texts, dim=-1).T
    own = torch.arange(len(made))
    side = visual.patch_size[0]
    covered = F.max_pool2d(torch.from_numpy(np.stack([one.mask > 0 for one in made])).float()[:, None], side)
    best = torch.einsum("bnd,bd->bn", patches, classes[wanted]).argmax(dim=1)
    return {
        "clip_zero_shot": float(((image @ classes.T).argmax(dim=1) == wanted).float().mean()),
        "image_to_text": float((likeness.argmax(dim=1) == own).float().mean()),
        "text_to_image": float((likeness.argmax(dim=0) == own).float().mean()),
        "candidates": float(len(made)),
        "clip_points_at_object": float(covered.flatten(1).gather(1, best[:, None]).mean()),
    }


def picture(pairs: Sequence[ImagePair], file: Path, columns: int = 10) -> None:
    """Write the first pairs, images above their counterfactuals."""
    rows = []
    for at in range(0, min(len(pairs), 3 * columns), columns):
        part = pairs[at : at + columns]
        if len(part) == columns:
            rows += [np.concatenate([pair.image for pair in part], 1)]
            rows += [np.concatenate([pair.counterfactual for pair in part], 1)]
    Pictures.fromarray(np.concatenate(rows)).resize(
        (columns * 2 * scenes.SIZE, len(rows) * 2 * scenes.SIZE), Pictures.Resampling.NEAREST
    ).save(file)


def table(measured: dict[str, float]) -> str:
    """One line per measure, with what it should reach."""
    width = max(map(len, measured))
    return "\n".join(
        f"{name:{width}}  {value:8.3f}"
        + (f"  {'reaches' if value >= TARGETS[name] else 'MISSES'} {TARGETS[name]:.2f}" if name in TARGETS else "")
        for name, value in measured.items()
    )


def kept_pairs(path: Path) -> tuple[list[str], list[ImagePair]]:
    """Captions and pairs that a run kept. Raises: IncompleteError if its masks are not done."""
    run = Run.open(path)
    kept = KeptSamples.of(run)
    captions = run.store.read("describe/captions", 0, run.plan.samples)[kept.indices, 0]
    images, others, _ = kept.read(kept.indices)
    return list(captions), [
        ImagePair(image=image, counterfactual=other) for image, other in zip(images, others, strict=True)
    ]


def measures_of(
    captions: Sequence[str], pairs: Sequence[ImagePair], judge: judging.Judge, *, trained: int, workers: int = 0
) -> dict[str, float]:
    """All measures of pairs that were made from captions, beside those of as many new painted scenes
    (``painted_...``: how well the judge sees).
    """
    count = len(pairs)
    answers = answers_to([parse(caption) for caption in captions])
    shown, empty = (np.stack([getattr(pair, name) for pair in pairs]) for name in ("image", "counterfactual"))
    measured = shares_found(_judged(judge, shown), _judged(judge, empty), answers)
    measured |= agreement(pairs)

    held = functools.partial(scenes.scene, seed=0, stream="measured")
    new = [held(number, objects=(0, 1)) for number in range(count)]
    without = np.stack([held(number, objects=(1,)).image for number in range(count)])
    images = np.stack([one.image for one in new])
    ceiling = shares_found(
        _judged(judge, images),
        _judged(judge, without),
        answers_to([one.spec for one in new]),
    )
    measured |= {f"painted_{name}": value for name, value in ceiling.items() if name != "counterfactual_scene"}

    clean = functools.partial(scenes.scene, seed=0, noise=0.0)
    heldout = np.stack([clean(number, stream="measured", objects=(0, 1)).image for number in range(count)])
    seen = functools.partial(clean, stream="train")
    memory = np.stack([one.image for one in scenes.ahead(seen, range(trained), workers)])
    return {"pairs": count} | measured | variety(shown, heldout, memory)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusion", type=Path, help="the pipeline")
    parser.add_argument("--run", type=Path, help="instead of the pipeline: a run whose kept pairs are measured")
    parser.add_argument("--judge", type=Path, help="folder of training.judge")
    parser.add_argument("--clip", type=Path, help="the CLIP")
    parser.add_argument("--count", type=int, default=500, help="pairs, and scenes")
    parser.add_argument("--trained", type=int, default=SCENES, help="training images to compare with")
    parser.add_argument("--steps", type=int, default=Sampling.steps)
    parser.add_argument("--guidance", type=float, default=Sampling.guidance)
    parser.add_argument("--scheduler", default=Sampling.scheduler)
    parser.add_argument("--counterfactual", default=Sampling.counterfactual, choices=("rewrite", "replace"))
    parser.add_argument("--device", default=Sampling.device)
    parser.add_argument("--workers", type=int, default=0, help="processes that paint")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    measured: dict[str, float] = {}
    if given.run or given.diffusion:
        if given.run:
            captions, pairs = kept_pairs(given.run)
        else:
            names = ("steps", "guidance", "scheduler", "counterfactual", "device")
            how = Sampling(**{name: getattr(given, name) for name in names})
            wanted = requests(given.count)
            captions, pairs = [request.caption for request in wanted], generate(given.diffusion, wanted, how)
            measured |= {"steps": how.steps, "guidance": how.guidance}
        judge = judging.load(given.judge)
        measured |= measures_of(captions, pairs, judge, trained=given.trained, workers=given.workers)
        if given.picture:
            picture(pairs, given.picture)
    if given.clip:
        measured |= clip_measures(given.clip, given.count)
    print(table(measured))
    if given.json:
        rounded = {name: round(value, 4) for name, value in measured.items()}
        given.json.write_text(json.dumps(rounded, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
