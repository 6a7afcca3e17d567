"""Images for the benchmarks, and a finished run with them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from magicseg.config.loading import load_config
from magicseg.labels import BACKGROUND
from magicseg.run import STAGES, Run
from magicseg.run.ledger import CommitRecord
from magicseg.run.versions import library_versions

Triple = tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16]]


def triples(count: int, size: int, folder: Path | None) -> Iterator[Triple]:
    """Yield image, counterfactual and mask, from photographs of ``folder`` (square crops) or from synthetic scenes.

    A scene is noise with the 1/f spectrum of photographs, with grain. The object of the mask is an ellipse. The
    counterfactual shows another image inside it.
    """
    photographs = sorted(folder.rglob("*.jpg")) if folder else []
    if folder and not photographs:
        raise SystemExit(f"{folder}: holds no .jpg")
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:size, :size] / size
    for number in range(count):
        image = _photograph(photographs[number % len(photographs)], size) if photographs else _scene(rng, size)
        y, x, height, width = rng.uniform(0.25, 0.75, 2).tolist() + rng.uniform(0.08, 0.3, 2).tolist()
        inside = ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1
        other = image.copy()
        other[inside] = image[::-1][inside]
        yield image, other, np.where(inside, 1 + number % 10, BACKGROUND).astype(np.uint16)


def _photograph(path: Path, size: int) -> NDArray[np.uint8]:
    with PillowImage.open(path) as image:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        cut = image.convert("RGB").crop((left, top, left + side, top + side))
        return np.asarray(cut.resize((size, size), PillowImage.Resampling.BICUBIC))


def _scene(rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None]) + 1 / size
    light = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(size, size))) / frequency**1.2, s=(size, size))
    tints = [np.roll(light, shift, axis=1) for shift in (0, size // 16, size // 8)]
    colour = np.stack(tints, axis=2) * 0.3 + light[..., None] * 0.7
    pixels = 128 + 55 * colour / colour.std() + rng.normal(scale=1.5, size=(size, size, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def make_run(
    path: Path, scenes: list[Triple], *, codec: str, shard_size: int = 64, vocabulary: str = "miniature"
) -> Run:
    """Create an empty run for the images' number and size."""
    size = scenes[0][0].shape[0]
    overrides = [
        f"plan.samples={len(scenes)}",
        f"plan.shard_size={shard_size}",
        f"generate.size={size}",
        f"store.image_codec={codec}",
        f"labels.vocabulary={vocabulary}",
    ]
    return Run.create(path, load_config(preset="painted", overrides=overrides))


def write_store(run: Run, scenes: list[Triple]) -> None:
    """Write all shards of images and masks like the stages."""
    for shard in range(run.plan.shards):
        samples = run.plan.shard_range(shard)
        images, others, masks = zip(*scenes[samples.start : samples.stop], strict=True)
        run.store.write_shard(
            shard,
            samples,
            {
                "generate/image": run.store.pack_images(
                    [run.store.encoded(one, run.config) for one in images], run.config
                ),
                "generate/counterfactual": run.store.pack_images(
                    [run.store.encoded(one, run.config) for one in others], run.config
                ),
                "mask/mask": np.stack(masks),
            },
        )


def commit_all(run: Run) -> None:
    """Commit all shards of every stage, with all samples kept."""
    for stage in STAGES:
        fingerprint = run.fingerprints[stage]
        for shard in range(run.plan.shards):
            count = len(run.plan.shard_range(shard))
            record = CommitRecord(
                shard=shard,
                fingerprint=fingerprint.digest,
                samples=count,
                kept=f"0-{count - 1}",
                dropped={},
                files={},
                seconds=0.0,
                peak_memory=0,
                finished="2025-01-01T00:00:00+00:00",
                host="",
                job="",
                versions=library_versions(),
            )
            run.ledger(stage).commit(record, fingerprint)


def write_folder(folder: Path, scenes: list[Triple], *, suffix: str) -> None:
    """Write images as ``suffix`` files (.png, or .jpg of quality 95 without chroma subsampling), and masks as PNG."""
    options = {"quality": 95, "subsampling": 0} if suffix == ".jpg" else {}
    for name in ("image", "counterfactual", "mask"):
        (folder / name).mkdir(parents=True)
    for number, (image, other, mask) in enumerate(scenes):
        PillowImage.fromarray(image).save(folder / "image" / f"{number:06d}{suffix}", **options)
        PillowImage.fromarray(other).save(folder / "counterfactual" / f"{number:06d}{suffix}", **options)
        PillowImage.fromarray(mask).save(folder / "mask" / f"{number:06d}.png")


def read_files(folder: Path, number: int, *, suffix: str) -> Triple:
    """Read one sample of a folder of `write_folder`."""
    with PillowImage.open(folder / "image" / f"{number:06d}{suffix}") as file:
        image = np.array(file.convert("RGB"))
    with PillowImage.open(folder / "counterfactual" / f"{number:06d}{suffix}") as file:
        other = np.array(file.convert("RGB"))
    with PillowImage.open(folder / "mask" / f"{number:06d}.png") as file:
        mask = np.array(file).astype(np.uint16)
    return image, other, mask


def folder_mib(path: Path) -> float:
    """Return the size of all files in a folder, in MiB."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 2**20
