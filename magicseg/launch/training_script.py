"""The scripts of jobs that are not arrays: training by torchrun on several nodes, and follow-up jobs."""

import shlex
import sys
from importlib.resources import files

from magicseg.core.package import package_version
from magicseg.launch.job_image import REFUSED, container_lines
from magicseg.launch.job_script import directives, interpreter, sbatch_options, setup_lines
from magicseg.launch.jobs import Submission
from magicseg.launch.profile import FOLLOW_UP, Profile
from magicseg.run.directory import Run


def _header(run: Run, profile: Profile, submission: Submission, dependency: str | None) -> list[str]:
    output = submission.folder / "%j_0_log.out"
    options = sbatch_options(
        profile,
        submission.stage,
        job_name=submission.arrays[0].name,
        dependency=dependency,
        output=str(output),
    )
    return ["#!/bin/bash", *directives(options), *setup_lines(profile)]


def training_script(run: Run, profile: Profile, submission: Submission, dependency: str | None) -> str:
    """Return the script of a training job: this run's options and settings, then ``slurm/train.sbatch``'s end."""
    text = (files("magicseg") / "slurm" / "train.sbatch").read_text(encoding="utf-8")
    work = text.partition("\n# ---")[2].partition("\n")[2]
    check = f'"${{python[@]}}" -m magicseg.launch.limits "$run" {shlex.quote(package_version())} || exit {REFUSED}'
    return "\n".join(
        [
            *_header(run, profile, submission, dependency),
            *container_lines(profile),
            f"run={shlex.quote(str(run.path))}",
            f"python=({shlex.join(interpreter(profile, 'train', run.path))})",
            f"processes={profile.resources('train').processes_per_node}",
            f"restarts={profile.restarts}",
            f"requeues={profile.requeue}",
            *([check] if profile.container else []),
            work,
        ]
    )


def follow_up_script(run: Run, profile: Profile, submission: Submission, dependency: str | None) -> str:
    """Return the script of a follow-up job: it runs ``magicseg follow-up`` outside any container."""
    command = [sys.executable, "-m", "magicseg", FOLLOW_UP, str(run.path), str(submission.number)]
    return "\n".join([*_header(run, profile, submission, dependency), shlex.join(command), ""])
