"""Job arrays through submitit: write the script and the pickled calls, and submit them.

submitit only writes the script and starts the pickled calls. Its other functions are not used:

- Submitting: submitit accepts any output of ``sbatch``, such as a site's banner.
- Waiting and results: no process stays alive after a submission, and the ledger records completion.
- Requeueing: the job script requeues itself (`magicseg.launch.job_script`).
"""

import contextlib
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from submitit.core.utils import DelayedSubmission
from submitit.slurm.slurm import SlurmExecutor

from magicseg.core.package import package_version
from magicseg.core.shard_ranges import format_ranges
from magicseg.launch.job_image import container_lines
from magicseg.launch.job_script import interpreter, sbatch_options, setup_lines, task_teardown, whole_node_lines
from magicseg.launch.profile import SERVER_STAGE, Profile
from magicseg.launch.slurm import SlurmError, cancel, submit_script
from magicseg.launch.task import run_task
from magicseg.run.directory import Run

# submitit's parameters by sbatch's long option names. All other options are "additional parameters".
_SUBMITIT_NAMES = {"job-name": "job_name", "cpus-per-task": "cpus_per_task", "ntasks-per-node": "ntasks_per_node"} | {
    name: name for name in ("partition", "time", "nodes", "qos", "mem", "constraint", "exclude", "account", "gres")
}


class _Executor(SlurmExecutor):
    @classmethod
    def affinity(cls) -> int:
        return 2  # available: scripts are shown on machines without Slurm too, and submitting reports sbatch's errors


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One array to submit, with the shards of its tasks. ``shares``: number of parts of an evaluation."""

    name: str
    tasks: Sequence[Sequence[int]]
    parallel: int
    dependency: str | None = None
    shares: int = 1


def _executor(run: Run, stage: str, profile: Profile, spec: ArraySpec, folder: Path) -> _Executor:
    options = sbatch_options(profile, stage, job_name=spec.name, dependency=spec.dependency, output=str(folder))
    # submitit sets these itself, from its folder and from `signal_delay_s`.
    for name in ("output", "open-mode", "signal"):
        del options[name]
    known = {_SUBMITIT_NAMES[name]: value for name, value in options.items() if name in _SUBMITIT_NAMES}
    executor = _Executor(folder, python=shlex.join(interpreter(profile, stage, run.path)))
    executor.update_parameters(
        **known,
        additional_parameters={name: value for name, value in options.items() if name not in _SUBMITIT_NAMES},
        signal_delay_s=profile.signal_before(stage),
        array_parallelism=spec.parallel,
        setup=[*setup_lines(profile), *whole_node_lines(profile.resources(stage)), *container_lines(profile)],
        teardown=task_teardown(profile),
        stderr_to_stdout=True,
        wckey=None,
    )
    return executor


def array_script(run: Run, stage: str, profile: Profile, spec: ArraySpec, folder: Path) -> str:
    """Return the script that `submit_array` would submit."""
    executor = _executor(run, stage, profile, spec, folder)
    if len(spec.tasks) > 1:
        executor.parameters["map_count"] = len(spec.tasks)
    return str(executor._make_submission_file_text(executor._submitit_command_str, ""))


def submit_array(run: Run, stage: str, profile: Profile, spec: ArraySpec, folder: Path) -> str:
    """Submit one array and return its job id.

    Raises SlurmError if sbatch refuses it. Raises OSError if its files cannot be written; then nothing is queued.
    """
    server = profile.caption_server
    calls = [
        DelayedSubmission(
            run_task,
            run=str(run.path),
            stage=stage,
            shards=format_ranges(shards),
            version=package_version(),
            delay=profile.stagger_seconds * offset if offset < spec.parallel else 0.0,
            shares=spec.shares,
            server=server.model_dump() if server and stage == SERVER_STAGE else None,
            folder=str(folder),
        )
        for offset, shards in enumerate(spec.tasks)
    ]
    script = folder / f".submission_file_{spec.name}.sh"
    script.write_text(array_script(run, stage, profile, spec, folder), encoding="utf-8")
    pickles = [folder / f"{spec.name}_{index}.pkl" for index in range(len(calls))]
    for call, pickle in zip(calls, pickles, strict=True):
        call.set_timeout(profile.resources(stage).minutes, max_num_timeout=3)
        call.dump(pickle)
    job = submit_script(script, spec.name)
    try:  # in the job, submitit waits up to a minute for a file of this name
        for index, pickle in enumerate(pickles):
            label = job if len(pickles) == 1 else f"{job}_{index}"
            pickle.rename(folder / f"{label}_submitted.pkl")
        script.rename(folder / f"{job}_submission.sh")
    except OSError:
        with contextlib.suppress(SlurmError):
            cancel([job])
        raise
    return job
