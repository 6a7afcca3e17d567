"""What goes into a job script: sbatch options, lines before the work and after it, the interpreter.

Every value has passed `magicseg.launch.profile`, and is quoted here once more.
"""

import shlex
import sys
from pathlib import Path

from magicseg.core.errors import ConfigError
from magicseg.core.safe_path import VARIABLE as SAFE_PATH
from magicseg.launch.profile import Profile, Resources
from magicseg.launch.task import STOPPED

_NAMED_PATHS = (
    'if [ -n "${PYTHONPATH:-}" ]; then # an empty item would be that folder, too',
    """  PYTHONPATH=$(tr : '\\n' <<<"$PYTHONPATH" | grep -vx '\\.\\{0,1\\}' | paste -sd :)""",
    "fi",
)
_MINIMAL = ("HOME", "LANG", "PATH", "USER")  # what a job cannot do without
_DEATHS = 2  # a killed worker goes back into the queue this often; then it is its shard's fault


def sbatch_options(
    profile: Profile, stage: str, *, job_name: str, dependency: str | None, output: str
) -> dict[str, str | int | bool]:
    """The options of a stage's jobs by their long names, without those that make an array.

    Args: output: the log's path, in which Slurm replaces %j.
    Raises: ConfigError if Slurm would replace more.
    """
    if "%" in output.replace("%j_0_log.out", "") or not output.isprintable():
        raise ConfigError(
            f"{output!r}: Slurm cannot write logs there: the path has a '%' or a character that cannot be printed",
            hint="move the run to a path without",
        )
    resources = profile.resources(stage)
    options: dict[str, str | int | bool | None] = {
        "job-name": job_name,
        "output": output,
        "open-mode": "append",
        "dependency": dependency,
        "kill-on-invalid-dep": "yes" if dependency else None,
        "requeue": True if profile.requeue else None,
        "no-requeue": None if profile.requeue else True,
        "signal": f"USR2@{profile.signal_before(stage)}",
        "time": resources.minutes,
        "mail-user": profile.mail_user,
        "mail-type": profile.mail_type,
        **resource_options(resources, stage),
    }
    if profile.pass_environment != "all":
        options["export"] = ",".join(dict.fromkeys([*_MINIMAL, *profile.pass_environment]))
    extra = {name: value for name, value in resources.extra.items() if value is not False}
    return {name: value for name, value in options.items() if value is not None} | extra


def resource_options(resources: Resources, stage: str) -> dict[str, str | int | bool | None]:
    """What a stage's jobs ask for, by sbatch's and srun's long names; None for what the site decides."""
    return {
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "exclude": resources.exclude,
        "gres": resources.gres,
        "gpus-per-node": resources.gpus or None,
        "cpus-per-task": resources.cpus,
        "mem": resources.memory,
        "mem-per-cpu": resources.memory_per_cpu,
        "mem-per-gpu": resources.memory_per_gpu,
        "exclusive": True if resources.exclusive else None,
        "nodes": resources.nodes if stage == "train" else 1,
        "ntasks-per-node": 1,
    }


def directives(options: dict[str, str | int | bool]) -> list[str]:
    """Options as ``#SBATCH`` lines."""
    return [
        f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"
        for name, value in sorted(options.items())
    ]


def setup_lines(profile: Profile) -> list[str]:
    """Shell lines before the work."""
    return [
        *(["type module >/dev/null 2>&1 || source /etc/profile"] if profile.modules else []),
        *(f"module load {shlex.quote(name)}" for name in profile.modules),
        *profile.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in sorted(profile.environment.items())),
        "# Python imports nothing from the folder in which the job was submitted.",
        f"export {SAFE_PATH}=1",
        *_NAMED_PATHS,
        "# srun takes over neither the job's CPUs (since Slurm 22.05) nor variables that sbatch was not told of.",
        'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
        "unset SLURM_EXPORT_ENV",
    ]


def _requeue_lines(condition: str) -> list[str]:
    """Back into the queue if ``condition`` holds. Only a job that still counts as running may go there: one that was
    cancelled is to stay so.
    """
    return [
        f"if {condition}; then",
        "  # Not SLURM_JOB_ID: that of an array's last task is the whole array's.",
        '  task="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"',
        '  if scontrol -o show job "$task" | grep -q JobState=RUNNING; then',
        '    scontrol requeue "$task"',
        "  fi",
        "fi",
    ]


def task_teardown(profile: Profile) -> list[str]:
    """Shell lines after an array task's worker, outside of any container, which may have no scontrol."""
    condition = (
        f'{{ [ "$code" -eq {STOPPED} ] && [ "$restarts" -lt {profile.requeue} ]; }} || '
        f'{{ [ "$code" -gt 128 ] && [ "$restarts" -lt {min(_DEATHS, profile.requeue)} ]; }}'
    )
    lines = ["restarts=${SLURM_RESTART_COUNT:-0}", *_requeue_lines(condition)] if profile.requeue else []
    comment = f"# {STOPPED}: stopped in time, more to do. Above 128: the worker was killed."
    return ["code=$?", *([comment, *lines] if lines else []), 'exit "$code"']


def interpreter(profile: Profile, stage: str, run: Path) -> list[str]:
    """The command that starts Python: this very one, or the container's. Raises: ConfigError for an odd path."""
    box = profile.container
    if box is None:
        return [sys.executable]
    resources = profile.resources(stage)
    nv = ["--nv"] if (resources.asks_gpu and not box.rocm if box.nv is None else box.nv) else []
    rocm = ["--rocm"] if box.rocm else []
    if ":" in str(run) or "," in str(run):
        raise ConfigError(
            f"{run}: cannot be seen in a container: its path has a ':' or a ','",
            hint="move the run to a path without",
        )
    binds = [word for bind in (str(run), *filter(None, [box.cache]), *box.binds) for word in ("--bind", bind)]
    return [box.executable, "exec", *nv, *rocm, *binds, box.image, box.python]
