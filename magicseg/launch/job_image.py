"""The container image of jobs: checked before submission, and again by every job script outside the container."""

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

REFUSED = 2  # a job's exit code if its image is not the submitted one
_CACHES = {"XDG_CACHE_HOME": "", "HF_HOME": "/huggingface", "TORCH_HOME": "/torch", "TRITON_CACHE_DIR": "/triton"}


@contextlib.contextmanager
def admitted(run: Run, profile: Profile, *, new: bool, queued: Collection[str]) -> Iterator[None]:
    """Check the profile's image and record it as the run's image. If nothing is submitted, restore the old record.

    Args: new: the run may change its image. queued: ids of the run's tasks that are in the queue.
    Raises ContainerError if the image cannot be read, has another version, or lacks the profile's signature.
    Raises PlanMismatch if it is not the run's image, unless ``new``; also with ``new`` if tasks are queued.
    """
    box = profile.container
    if box is None:
        yield
        return
    before = recorded_image(run.path)
    image = identify(Path(box.image))
    if not new:
        again = command("magicseg", "submit", "STAGE", run.path, "--new-image")
        refuse_other_image(
            run.path, image.digest, f"set that image in the profile, or continue in this image: {again}"
        )
    elif queued and before is not None and before[0] != image.digest:
        raise PlanMismatch(
            f"{run.path}: {len(queued)} queued tasks use the run's present image {before[0][:19]}, and would refuse "
            "to run in another",
            hint=f"{command('magicseg', 'cancel', run.path)}   # or wait for them",
        )
    if shutil.which(box.executable):  # some login nodes have no container runtime; then only the jobs check
        _check_image(box)
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


def _check_image(box: ContainerSettings) -> None:
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
    """Return a job script's lines for the profile's image: they check the image and set variables for inside it.

    The lines compare size and modification time first, so that a thousand tasks do not hash gigabytes each.
    Raises ContainerError if the image cannot be read on this machine.
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
    if foreign:  # these would put the host's libraries before the image's
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
    # Only variables with this prefix override those that the image sets.
    prefix = "SINGULARITYENV_" if "singularity" in Path(box.executable).name else "APPTAINERENV_"
    inside = {VARIABLE: image.digest, SAFE_PATH: "1"}
    if box.cache:
        lines.append(f"mkdir -p -- {shlex.quote(box.cache)}")
        inside |= {name: box.cache + folder for name, folder in _CACHES.items()}
    return [*lines, *(f"export {prefix}{name}={shlex.quote(value)}" for name, value in sorted(inside.items()))]


def _refuse_if(condition: str, message: str) -> list[str]:
    """Return shell lines that print an error and exit if ``condition``, quoted shell code, holds."""
    return [f"if {condition}; then", f"  echo {shlex.quote(f'error: {message}')}", f"  exit {REFUSED}", "fi"]
