"""The image that jobs run in: looked at before they are submitted, and once more by every job, from outside."""

import shlex
import shutil
from pathlib import Path

import magicseg
from magicseg.container.image import VERSION_LABEL, identify, labels, refuse_unsigned, verification
from magicseg.container.runtime import find_runtime
from magicseg.errors import ContainerError
from magicseg.launch.profile import ContainerSettings, Profile
from magicseg.run.directory import Run
from magicseg.run.image import VARIABLE, record_image, refuse_other_image

REFUSED = 2  # a job's exit code for an image that is not the one meant
_CACHES = {"XDG_CACHE_HOME": "", "HF_HOME": "/huggingface", "TORCH_HOME": "/torch", "TRITON_CACHE_DIR": "/triton"}


def admit_image(run: Run, profile: Profile, *, new: bool) -> None:
    """Look at the profile's image before anything is submitted, and write down that the run is done in it.

    Args: new: another image than the run's so far is meant.
    Raises: ContainerError if it cannot be read, is of another version or is not signed as the profile has it;
    PlanMismatch if it is another one than the run's, unless ``new``.
    """
    box = profile.container
    if box is None:
        return
    image = identify(Path(box.image))
    if not new:
        again = f"magicseg submit STAGE {run.path} --new-image"
        refuse_other_image(run.path, image.digest, f"name that one in the profile, or go on in this one: {again}")
    if shutil.which(box.executable):  # else the jobs will see: some login nodes have none
        _refuse_at_once(box)
    record_image(run.path, image.digest, image.path.absolute())


def _refuse_at_once(box: ContainerSettings) -> None:
    runtime = find_runtime(box.executable)
    if box.verify:
        refuse_unsigned(runtime, Path(box.image), Path(box.verify))
    version = labels(runtime, Path(box.image)).get(VERSION_LABEL)
    if version not in {None, magicseg.__version__}:
        raise ContainerError(
            f"{box.image}: has magicseg {version}, but this machine has {magicseg.__version__}",
            hint="magicseg container build   # or install the image's version here",
        )


def container_lines(profile: Profile) -> list[str]:
    """Shell lines of a job that will start the profile's image: refuse any other, say what is to be known inside.

    The image's size and time of change are compared first, so that a thousand tasks do not read gigabytes each.
    Raises: ContainerError if the image cannot be read here.
    """
    box = profile.container
    if box is None:
        return []
    image = identify(Path(box.image))
    path, digest = shlex.quote(box.image), image.digest.removeprefix("sha256:")
    refused = shlex.quote(
        f"error: {box.image}: is not the image of this submission ({image.digest[:19]}): put it back, or submit again"
    )
    lines = [
        f'if [ "$(stat -Lc %s.%Y -- {path})" != {image.size}.{image.changed} ] &&',
        f'  [ "$(sha256sum <{path} | cut -c -64)" != {digest} ]; then',
        f"  echo {refused}",
        f"  exit {REFUSED}",
        "fi",
    ]
    if box.verify:
        unsigned = shlex.quote(f"error: {box.image}: is not signed with {box.verify}, or was changed since")
        lines += [
            f"if ! {shlex.join(verification(box.executable, box.image, box.verify))}; then",
            f"  echo {unsigned}",
            f"  exit {REFUSED}",
            "fi",
        ]
    # The only names that win over what an image sets for itself.
    prefix = "SINGULARITYENV_" if "singularity" in Path(box.executable).name else "APPTAINERENV_"
    inside = {VARIABLE: image.digest}
    if box.cache:
        lines.append(f"mkdir -p -- {shlex.quote(box.cache)}")
        inside |= {name: box.cache + folder for name, folder in _CACHES.items()}
    return [*lines, *(f"export {prefix}{name}={shlex.quote(value)}" for name, value in sorted(inside.items()))]
