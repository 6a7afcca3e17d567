"""``magicseg predict``: label user-supplied images with a trained model."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from magicseg.cli.options import MaxPixelsOption
from magicseg.cli.output import note, print_json, progress


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATHS...", help="images, folders, patterns like 'photos/*.jpg', or - for stdin"),
    ],
    model: Annotated[Path, typer.Option("--model", metavar="RUN|MODEL", help="a trained run, or a model's folder")],
    labels: Annotated[
        str,
        typer.Option("--labels", metavar="LIST", help="labels to query: 'cat, dog', voc20, or a .txt or .yaml file"),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="output folder for the label maps")],
    threshold: Annotated[
        float,
        typer.Option("--threshold", min=0, max=1, help="pixels whose best label scores below this are background"),
    ] = 0.5,
    window: Annotated[
        int | None,
        typer.Option(
            "--window", min=1, metavar="PIXELS", help="side of the sliding window (default: the whole image at once)"
        ),
    ] = None,
    max_pixels: MaxPixelsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the label areas of every image as JSON")] = False,
) -> None:
    """Label every pixel of your own images with a trained model: index PNGs, overlays, areas.

    DIR/predictions.jsonl lists the area of each label by image. Repeating the command labels missing images only.
    """
    from magicseg.core.errors import IncompleteError
    from magicseg.core.signals import StopFlag, on_signals
    from magicseg.evaluate.predict_images import RECORD, find_images, predict_images
    from magicseg.images.reading import MAX_PIXELS
    from magicseg.labels import parse_labels
    from magicseg.run.attempts import forget_attempts
    from magicseg.stages.mask.image_labelling import LabelledImage, next_step

    vocabulary = parse_labels(labels)
    images = find_images(paths, out, lines=sys.stdin if "-" in paths else (), tell=note)
    with on_signals(StopFlag(), then=forget_attempts) as stop, progress("predict", len(images), "images") as show:

        def report(done: LabelledImage) -> None:
            show(1, "")
            if done.remark:
                note(f"{done.name}: {done.remark}")

        found = predict_images(
            images,
            model,
            vocabulary,
            out,
            threshold=threshold,
            window=window,
            max_pixels=max_pixels or MAX_PIXELS,
            report=report,
            should_stop=stop,
        )
    if as_json:
        print_json([{"image": one.name, **one.entry} for one in found])
    labelled = sum(one.labelled for one in found)
    note(f"{out}: label maps of {labelled} of {len(images)} images; areas by label: {out / RECORD}")
    failed = [one.name for one in found if not one.labelled]
    if failed or len(found) < len(images):
        what = f"{len(failed)} images failed, such as {failed[0]}" if failed else "interrupted"
        raise IncompleteError(f"{out}: {what}", hint=next_step(found, out))
