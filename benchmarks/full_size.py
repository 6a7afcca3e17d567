"""Time and peak memory of one training step of the paper's full-size model on the CPU.

The model is a frozen ViT-B/16 with random weights at 512 px, 10 prompts in each of 12 layers, and a decoder of 3
layers. The step queries 100 classes per image and uses all losses, including the counterfactual loss, and AdamW.
Random weights take the same time as trained weights. Each row runs in a separate process. On a shared machine, trust
the CPU time rather than the wall time.

    python benchmarks/full_size.py
    python benchmarks/full_size.py --images 2 --threads 2
"""

import argparse
import os
import tempfile
import time

import torch
from measure import in_fresh_process, peak_mib, print_table

from magicseg.config.model import OpenClipSettings
from magicseg.config.training import TrainSettings
from magicseg.data.dataset import Batch
from magicseg.labels import Label, Vocabulary
from magicseg.model.segmenter import build_segmenter
from magicseg.model.targets import sample_targets
from magicseg.train.optimizer import build_optimizer, trained_parameters
from magicseg.train.step import ModelWithLosses


def _batch(images: int, size: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, images, 3, size, size), dtype=torch.uint8, generator=generator)
    masks = torch.zeros(images, size, size, dtype=torch.int32)
    masks[:, size // 4 : size // 2, size // 4 : size // 2] = 1
    masks[:, size // 2 :, size // 2 :] = 2
    return Batch(
        pixels[0], pixels[1], masks, torch.ones(images, dtype=torch.bool), torch.zeros(images, dtype=torch.int64)
    )


def _steps(images: int, size: int, classes: int, threads: int, checkpoint_activations: bool) -> tuple[float, ...]:
    """Return CPU seconds of the class texts and of the second step, wall seconds of that step, and peak MiB."""
    torch.set_num_threads(threads)
    encoder = OpenClipSettings(name="open-clip", architecture="ViT-B-16-quickgelu", weights=None, image_size=size)
    settings = TrainSettings(encoder=encoder, batch_size=images)
    labels = tuple(Label(id=number, name=f"thing {number}") for number in range(1, classes + 1))
    model = build_segmenter(settings.model, seed=0).train()
    model.checkpoint_activations = checkpoint_activations
    names = [label.name for label in labels]
    began = time.process_time()
    model.class_texts(names)
    told = time.process_time() - began
    module = ModelWithLosses(model, Vocabulary(name="things", labels=labels), settings)
    optimizer = build_optimizer(model, settings)
    batch = _batch(images, size)
    draws = torch.rand(images, classes, generator=torch.Generator().manual_seed(0))
    clocks = []
    for _ in range(2):
        began = time.process_time(), time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        targets = sample_targets(batch.masks, draws, sampled_classes=settings.sampled_classes)
        loss = module(batch, targets, module.counts(batch, targets))["loss"]
        loss.backward()
        optimizer.step()
        assert loss.isfinite()
        clocks.append((time.process_time() - began[0], time.perf_counter() - began[1]))
    assert all(parameter.grad is not None for _, parameter in trained_parameters(model))
    return told, *clocks[1], peak_mib()


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--size", type=int, default=512, help="pixels, a multiple of 16")
    parser.add_argument("--classes", type=int, default=1203, help="of the vocabulary")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = temporary  # the second row reads the class texts from it
        for checkpointed in (False, True):
            sizes = arguments.images, arguments.size, arguments.classes
            found = in_fresh_process(_steps, *sizes, arguments.threads, checkpointed)
            rows.append(["activations computed again" if checkpointed else "activations kept", *found])
    print_table(
        f"ViT-B/16 at {arguments.size} px, {arguments.images} image(s) and as many counterfactuals, "
        f"{arguments.classes} classes, {arguments.threads} thread(s)",
        ["", "class texts, CPU s", "step, CPU s", "step, s", "peak MiB"],
        rows,
    )


if __name__ == "__main__":
    main()
