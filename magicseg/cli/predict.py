"""``magicseg predict``: a trained model on one's own pictures."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from magicseg.cli.output import note, print_json, progress


def predict(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATHS...", help="pictures, folders, patterns like 'photos/*.jpg', or - for stdin"),
    ],
    model: Annotated[Path, typer.Option("--model", metavar="RUN|MODEL", help="a trained run, or a model's folder")],
    labels: Annotated[
        str,
        typer.Option("--labels", metavar="LIST", help="what to look for: 'cat, dog', voc20, or a .txt or .yaml file"),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="where the label maps go")],
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, max=1, help="pixels whose best label scores less are background")
    ] = 0.5,
    window: Annotated[
        int | None,
        typer.Option("--window", min=1, metavar="PIXELS", help="sliding window (default: the whole picture at once)"),
    ] = None,
    max_pixels: Annotated[
        int | None,
        typer.Option("--max-pixels", min=1, metavar="N", help="leave larger images out (default: 200000000)"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print what was found as JSON")] = False,
) -> None:
    """Label every pixel of your own pictures with a trained model: index PNGs, overlays, areas.

    DIR/predictions.jsonl tells of every picture how large each label is. The same command again does what is missing.
    """
    from magicseg.core.errors import IncompleteError
    from magicseg.core.signals import StopFlag, on_signals
    from magicseg.evaluate.predict import RECORD, pictures_of, predict_pictures
    from magicseg.images.reading import MAX_PIXELS
    from magicseg.labels import labels_of
    from magicseg.run.attempts import forget_attempts
    from magicseg.stages.mask.labelling import LabelledPicture, next_step

    vocabulary = labels_of(labels)
    pictures = pictures_of(paths, out, lines=sys.stdin if "-" in paths else (), tell=note)
    with on_signals(StopFlag(), then=forget_attempts) as stop, progress("predict", len(pictures), "images") as show:

        def report(done: LabelledPicture) -> None:
            show(1, "")
            if done.remark:
                note(f"{done.name}: {done.remark}")

        found = predict_pictures(
            pictures,
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
    note(f"{out}: label maps of {labelled} of {len(pictures)} images; what was found: {out / RECORD}")
    failed = [one.name for one in found if not one.labelled]
    if failed or len(found) < len(pictures):
        what = f"{len(failed)} images failed, such as {failed[0]}" if failed else "interrupted"
        raise IncompleteError(f"{out}: {what}", hint=next_step(found, out))
