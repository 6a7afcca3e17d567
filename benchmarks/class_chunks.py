"""With ``train.class_chunk``, the memory of the mask losses is that of a chunk of classes and not of all.

The script computes focal and dice, forward and backward, from random logits on the patch grid. Upsampling them to
pixels is part of it; encoder and decoder are not. Every row is measured in a fresh process: the peak of its resident
memory above what it held before, and seconds. Losses and gradients are compared with those of the first row.
All classes at once need about 11 float32 tensors of images x classes x pixels. A row that needs more than
``--memory`` GiB by this rule is not run.

    python benchmarks/class_chunks.py                               # 16 images, 100 classes, 512 px
    python benchmarks/class_chunks.py --batch 2 4
"""

import argparse
import os
import time

import torch
from measure import in_fresh_process, peak_mib, print_table

from magicseg.config.training import TrainSettings
from magicseg.model.decoder import upsample_logits
from magicseg.model.losses import loss_terms
from magicseg.model.losses.class_chunks import GridLogits, term_counts, term_values
from magicseg.model.losses.term import ForwardPass, ImageTokens, PairedImages, weighted_sum
from magicseg.model.targets import sample_targets

_STRIDE = 16
_TENSORS = 11  # of a chunk's logits at pixels, about: see the rows that are run
_CLASSES = 171  # of the vocabulary


def _measure(
    batch: int, sampled: int, size: int, chunk: int, threads: int
) -> tuple[float, float, float, torch.Tensor]:
    """Return MiB, seconds, the loss, and the gradient by patch logit."""
    torch.set_num_threads(threads)
    generator = torch.Generator().manual_seed(0)
    terms = loss_terms(TrainSettings(counterfactual_weight=0.0))
    class_map = torch.randint(0, _CLASSES + 1, (batch, size // 64, size // 64), generator=generator)
    class_map = class_map.repeat_interleave(64, 1).repeat_interleave(64, 2).int()
    draws = torch.rand(batch, _CLASSES, generator=generator)
    targets = sample_targets(class_map, draws, sampled_classes=sampled)
    grid = torch.randn(batch, sampled, size // _STRIDE, size // _STRIDE, generator=generator).requires_grad_()
    images = torch.zeros(batch, 3, size, size, dtype=torch.uint8)
    none = torch.zeros(batch, dtype=torch.bool)
    nothing = torch.zeros(batch, sampled, 1)
    found = ForwardPass(
        targets=targets,
        pairs=PairedImages(images, images, none, none),
        text=nothing,
        images=ImageTokens(nothing[:, 0], nothing),
        counterfactuals=None,
    )
    before, began = peak_mib(), time.perf_counter()
    counts = term_counts(terms, targets, found.pairs, chunk=chunk)
    logits = GridLogits((grid,), lambda each: upsample_logits(each, (size, size)))
    loss = weighted_sum(terms, term_values(terms, counts, found, logits, None, chunk=chunk))
    loss.backward()  # type: ignore[no-untyped-call]
    assert grid.grad is not None
    return peak_mib() - before, time.perf_counter() - began, float(loss.detach()), grid.grad


def _rows(batch: int, arguments: argparse.Namespace) -> list[list[object]]:
    rows: list[list[object]] = []
    logits = batch * arguments.sampled * arguments.size**2 * 4 / 2**20
    first = None
    for chunk in arguments.chunks:
        need = _TENSORS * logits * (chunk or arguments.sampled) / arguments.sampled
        if need > arguments.memory * 1024:
            rows.append([batch, chunk or "all", "not run", f"about {need:,.0f}", "", ""])
            continue
        mib, seconds, loss, gradient = in_fresh_process(
            _measure, batch, arguments.sampled, arguments.size, chunk, arguments.threads
        )
        if first is None:
            first = loss, gradient
        torch.testing.assert_close(loss, first[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(gradient, first[1], rtol=1e-5, atol=1e-5 * float(first[1].abs().max()))
        rows.append([batch, chunk or "all", mib, mib / logits, seconds, loss])
    return rows


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[16], help="images")
    parser.add_argument("--sampled", type=int, default=100, help="queried classes")
    parser.add_argument("--size", type=int, default=512, help="pixels")
    parser.add_argument("--chunks", type=int, nargs="+", default=[0, 25, 10, 5], help="classes; 0: all")
    parser.add_argument("--memory", type=float, default=7.0, help="GiB")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)  # of the fresh processes: freed tensors leave their memory
    rows = [row for batch in arguments.batch for row in _rows(batch, arguments)]
    head = ["images", "class_chunk", "MiB", "MiB / all logits", "s", "loss"]
    print_table(f"mask losses of {arguments.sampled} classes at {arguments.size} px", head, rows)


if __name__ == "__main__":
    main()
