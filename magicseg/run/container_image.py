"""The image that a run is done in: RUN/image.json, and the refusal of any other.

Inside of an image, its digest is in the variable MAGICSEG_IMAGE, which whoever starts the image sets from outside: a
process cannot hash the file system that it lives in.
"""

import datetime
import os
from pathlib import Path

from typing_extensions import TypedDict

from magicseg.core.documents import read_json
from magicseg.core.errors import PlanMismatch, RunError
from magicseg.core.files import to_json, write_atomic
from magicseg.core.text import command

IMAGE_NAME = "image.json"
VARIABLE = "MAGICSEG_IMAGE"


class _ImageFile(TypedDict):
    digest: str
    path: str


def present_image() -> str | None:
    """Return the digest of the container image that this process runs in; None outside of a container."""
    return os.environ.get(VARIABLE) or None


def recorded_image(run: Path) -> tuple[str, str] | None:
    """Return the digest and path of a run's image; None if the run was never submitted with an image."""
    remove = command("rm", run / IMAGE_NAME)
    try:
        card = read_json(
            run / IMAGE_NAME, _ImageFile, error=RunError, hint=f"{remove}   # the next submission writes it again"
        )
    except FileNotFoundError:
        return None
    return card["digest"], card["path"]


def record_image(run: Path, digest: str, image: Path) -> None:
    """Record the image that all later jobs of the run must use."""
    since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    write_atomic(run / IMAGE_NAME, to_json({"digest": digest, "path": str(image), "since": since}) + b"\n")


def forget_image(run: Path) -> None:
    """Remove the record of the image, because nothing was submitted."""
    (run / IMAGE_NAME).unlink(missing_ok=True)


def refuse_other_image(run: Path, digest: str | None, hint: str) -> None:
    """Raise PlanMismatch if ``digest`` is that of an image, and the run's image is another."""
    known = recorded_image(run)
    if known is not None and digest is not None and digest != known[0]:
        raise PlanMismatch(
            f"{run}: is done in the image {known[0][:19]} ({known[1]}), but this is {digest[:19]}", hint=hint
        )
