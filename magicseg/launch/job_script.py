"""The parts of a job script: sbatch options, lines before and after the work, the interpreter.

`magicseg.launch.profile` has validated every value; it is quoted here in addition.
"""

import shlex
import sys
from pathlib import Path

from magicseg.core.errors import ConfigError
from magicseg.core.safe_path import VARIABLE as SAFE_PATH
from magicseg.launch.profile import Profile, Resources
from magicseg.launch.task import STOPPED

_CLEAN_PYTHONPATH = (
    'if [ -n "${PYTHONPATH:-}" ]; then # empty items also mean the current folder',
    """  PYTHONPATH=$(tr : '\\n' <<<"$PYTHONPATH" | grep -vx '\\.\\{0,1\\}' | paste -sd :)""",
    "fi",
)
_MINIMAL = ("HOME", "LANG", "PATH", "USER")  # variables that every job needs
_REQUEUES_IF_KILLED = 2  # a task whose worker was killed is requeued this often; then its shard is the likely cause


def sbatch_options(
    profile: Profile, stage: str, *, job_name: str, dependency: str | None, output: str
) -> dict[str, str | int | bool]:
    """Return the sbatch options of a stage's jobs by their long names, without the options of an array.

    Args: output: the log's path. Slurm replaces its ``%j`` by the job id.
    Raises ConfigError if the path holds other '%' characters, which Slurm would replace too.
    """
    if "%" in output.replace("%j_0_log.out", "") or not output.isprintable():
        raise ConfigError(
            f"{output!r}: Slurm cannot write logs there: the path has a '%' or a character that cannot be printed",
            hint="move the run to a path without such characters",
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
    """Return a stage's resources by the long option names of sbatch and srun; None for the site's defaults."""
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
    """Return options as ``#SBATCH`` lines."""
    return [
        f"#SBATCH --{name}" if value is True else f"#SBATCH --{name}={shlex.quote(str(value))}"
        for name, value in sorted(options.items())
    ]


def setup_lines(profile: Profile) -> list[str]:
    """Return the shell lines before the work: modules, setup lines, environment."""
    return [
        *(["type module >/dev/null 2>&1 || source /etc/profile"] if profile.modules else []),
        *(f"module load {shlex.quote(name)}" for name in profile.modules),
        *profile.setup,
        *(f"export {name}={shlex.quote(value)}" for name, value in sorted(profile.environment.items())),
        "# Python must not import from the folder in which the job was submitted.",
        f"export {SAFE_PATH}=1",
        *_CLEAN_PYTHONPATH,
        "# srun inherits neither --cpus-per-task (since Slurm 22.05) nor, with --export, the script's variables.",
        'export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"',
        "unset SLURM_EXPORT_ENV",
    ]


def whole_node_lines(resources: Resources) -> list[str]:
    """Return the shell lines that give a task all GPUs of its node, if it has the node for itself.

    Slurm allocates all of them to an exclusive job, but srun passes on only those that were requested (22.05).
    """
    if not resources.exclusive:
        return []
    return [
        'if [ -n "${SLURM_GPUS_ON_NODE:-}" ]; then # of an exclusive job: all, requested or not',
        '  export SLURM_GPUS_PER_NODE="$SLURM_GPUS_ON_NODE"',
        "  unset SLURM_GPUS SLURM_GPUS_PER_TASK SLURM_GRES",
        "fi",
    ]


def _requeue_lines(condition: str) -> list[str]:
    """Return shell lines that requeue the task if ``condition`` holds.

    Only a job in the state RUNNING is requeued: a cancelled job stays cancelled.
    """
    return [
        f"if {condition}; then",
        "  # Not SLURM_JOB_ID: for an array's last task it is the id of the whole array.",
        '  task="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"',
        '  if scontrol -o show job "$task" | grep -q JobState=RUNNING; then',
        '    scontrol requeue "$task"',
        "  fi",
        "fi",
    ]


def task_teardown(profile: Profile) -> list[str]:
    """Return the shell lines after an array task's worker, outside the container, which may lack scontrol."""
    condition = (
        f'{{ [ "$code" -eq {STOPPED} ] && [ "$restarts" -lt {profile.requeue} ]; }} || '
        f'{{ [ "$code" -gt 128 ] && [ "$restarts" -lt {min(_REQUEUES_IF_KILLED, profile.requeue)} ]; }}'
    )
    lines = ["restarts=${SLURM_RESTART_COUNT:-0}", *_requeue_lines(condition)] if profile.requeue else []
    comment = f"# {STOPPED}: stopped before the time limit with work left. Above 128: the worker was killed."
    return ["code=$?", *([comment, *lines] if lines else []), 'exit "$code"']


def interpreter(profile: Profile, stage: str, run: Path) -> list[str]:
    """Return the command that starts Python: this interpreter, or the container's.

    Raises ConfigError if the run's path cannot be bound into a container.
    """
    box = profile.container
    if box is None:
        return [sys.executable]
    resources = profile.resources(stage)
    nv = ["--nv"] if (resources.asks_gpu and not box.rocm if box.nv is None else box.nv) else []
    rocm = ["--rocm"] if box.rocm else []
    if ":" in str(run) or "," in str(run):
        raise ConfigError(
            f"{run}: cannot be bound into a container: its path has a ':' or a ','",
            hint="move the run to a path without such characters",
        )
    binds = [word for bind in (str(run), *filter(None, [box.cache]), *box.binds) for word in ("--bind", bind)]
    return [box.executable, "exec", *nv, *rocm, *binds, box.image, box.python]
