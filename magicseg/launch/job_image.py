"""The image that jobs run in: looked at before they are submitted, and once more by every job, from outside."""

import contextlib
import shlex
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from magicseg.container.image import VERSION_LABEL, identify, labels, refuse_unsigned, verification
from magicseg.container.runtime import FOREIGN, find_runtime
from magicseg.core.errors import ContainerError, PlanMismatch
from magicseg.core.package import package_version
from magicseg.core.safe_path import VARIABLE as SAFE_PATH
from magicseg.core.text import command
from magicseg.launch.jobs import submissions
from magicseg.launch.profile import ContainerSettings, Profile
from magicseg.run.container_image import VARIABLE, forget_image, record_image, recorded_image, refuse_other_image
from magicseg.run.directory import Run

REFUSED = 2  # a job's exit code for an image that is not the one meant
_CACHES = {"XDG_CACHE_HOME": "", "HF_HOME": "/huggingface", "TORCH_HOME": "/torch", "TRITON_CACHE_DIR": "/triton"}


@contextlib.contextmanager
def admitted(run: Run, profile: Profile, *, new: bool, queued: Collection[str]) -> Iterator[None]:
    """Look at the profile's image, and write down that the run is done in it; if then nothing is submitted, the
    record is as it was.

    Args: new: another image than the run's so far is meant. queued: tasks of the run that are in the queue.
    Raises: ContainerError if it cannot be read, is of another version or is not signed as the profile has it;
    PlanMismatch if it is another one than the run's, unless ``new``; also then if tasks of the old one are queued.
    """
    box = profile.container
    if box is None:
        yield
        return
    before = recorded_image(run.path)
    image = identify(Path(box.image))
    if not new:
        again = command("magicseg", "submit", "STAGE", run.path, "--new-image")
        refuse_other_image(run.path, image.digest, f"name that one in the profile, or go on in this one: {again}")
    elif queued and before is not None and before[0] != image.digest:
        raise PlanMismatch(
            f"{run.path}: {len(queued)} tasks of the image so far, {before[0][:19]}, are in the queue, and would "
            "refuse to run after this",
            hint=f"{command('magicseg', 'cancel', run.path)}   # or wait for them",
        )
    if shutil.which(box.executable):  # else the jobs will see: some login nodes have none
        _refuse_at_once(box)
    record_image(run.path, image.digest, image.path.absolute())
    known = {one.number for one in submissions(run)}
    try:
        yield
    finally:
        if {one.number for one in submissions(run)} <= known:
            if before is None:
                forget_image(run.path)
            else:
                record_image(run.path, before[0], Path(before[1]))


def _refuse_at_once(box: ContainerSettings) -> None:
    runtime = find_runtime(box.executable)
    if box.verify:
        refuse_unsigned(runtime, Path(box.image), Path(box.verify))
    version = labels(runtime, Path(box.image)).get(VERSION_LABEL)
    if version not in {None, package_version()}:
        raise ContainerError(
            f"{box.image}: has magicseg {version}, but this machine has {package_version()}",
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
    changed = (
        f'[ "$(stat -Lc %s.%Y -- {path})" != {image.size}.{image.changed} ] &&\n'
        f'  [ "$(sha256sum <{path} | cut -c -64)" != {digest} ]'
    )
    lines = [
        *_refuse_if(f"! [ -r {path} ]", f"{box.image}: cannot be read on this node: is its file system there?"),
        *_refuse_if(
            changed,
            f"{box.image}: is not the image of this submission ({image.digest[:19]}): put it back, or submit again",
        ),
    ]
    foreign = [name for name in FOREIGN if name not in profile.environment]
    if foreign:  # the libraries of the host, before those of the image
        lines.append(f"unset {' '.join(foreign)}")
    lines += _refuse_if(
        f"! command -v {shlex.quote(box.executable)} >/dev/null",
        f"{box.executable}: is not on this node's PATH: is there a module for it?",
    )
    if box.verify:
        lines += _refuse_if(
            f"! {shlex.join(verification(box.executable, box.image, box.verify))}",
            f"{box.image}: is not signed with {box.verify}, or was changed since",
        )
    # The only names that win over what an image sets for itself.
    prefix = "SINGULARITYENV_" if "singularity" in Path(box.executable).name else "APPTAINERENV_"
    inside = {VARIABLE: image.digest, SAFE_PATH: "1"}
    if box.cache:
        lines.append(f"mkdir -p -- {shlex.quote(box.cache)}")
        inside |= {name: box.cache + folder for name, folder in _CACHES.items()}
    return [*lines, *(f"export {prefix}{name}={shlex.quote(value)}" for name, value in sorted(inside.items()))]


def _refuse_if(condition: str, message: str) -> list[str]:
    """Shell lines. Args: condition: of the shell, quoted already. message: any text."""
    return [f"if {condition}; then", f"  echo {shlex.quote(f'error: {message}')}", f"  exit {REFUSED}", "fi"]
