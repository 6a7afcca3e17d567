"""Environment variables of the submitting shell: ``SBATCH_*`` variables and secrets."""

import json
import os
import re

from magicseg.config.run import Config
from magicseg.config.stage_declarations import STAGES
from magicseg.core.errors import ConfigError
from magicseg.core.secrets import assigned_secret
from magicseg.launch.profile import Profile

# In sbatch, a variable overrides the job script. Here it only applies if the profile leaves the option unset.
_TAKEN = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_RESERVATION": "extra.reservation",
    "SBATCH_WCKEY": "extra.wckey",
}
# These have no effect on a job, or Slurm sets them inside a job.
_IGNORED = re.compile("SBATCH_(DEBUG|COLOR|WAIT_PREFIX|(CPU|MEM)_BIND.*)")


def site_overrides(profile: Profile) -> tuple[list[str], list[str]]:
    """Return overrides from ``SBATCH_*`` variables for options that the profile leaves unset, and notes for the user.

    An override is ``slurm.KEY=VALUE``. The notes name the variables that are used and ignored. Inside a job all are
    ignored, because they may be meant for that job.
    """
    overrides, taken, dropped = [], [], []
    for name in sorted(os.environ):
        if not name.startswith("SBATCH_") or _IGNORED.fullmatch(name) or not os.environ[name]:
            continue
        key = None if "SLURM_JOB_ID" in os.environ else _TAKEN.get(name)
        if key is None:
            dropped.append(name)
            continue
        group, _, option = key.rpartition(".")
        configured = profile.extra.get(option) if group else getattr(profile, option)
        if configured is None:
            overrides.append(f"slurm.{key}={json.dumps(os.environ[name])}")
            taken.append(f"{name} ({option})")
        elif configured != os.environ[name]:
            dropped.append(name)
    notes = [f"used from your environment, since the profile leaves them unset: {', '.join(taken)}"] if taken else []
    if dropped:
        notes.append(f"ignored from your environment: {', '.join(dropped)}; the profile defines what jobs request")
    return overrides, notes


def refuse_named_secrets(config: Config, profile: Profile) -> None:
    """Raise ConfigError if the profile writes a variable that holds a back end's key into job scripts.

    Options whose names end in ``_env``, such as ``describe.options.api_key_env``, name these variables.
    """
    named = {
        str(value): f"{stage}.options.{key}"
        for stage in STAGES
        for key, value in getattr(config, stage).options.items()
        if key.endswith("_env") and value
    }
    written = {re.sub("^(APPTAINER|SINGULARITY)ENV_", "", name) for name in profile.environment}
    assigned = {name for line in profile.setup if (name := assigned_secret(line, named)) is not None}
    found = sorted((written | assigned) & named.keys())
    if found:
        raise ConfigError(
            f"{found[0]} holds the key that {named[found[0]]} names, and the profile would write it into job scripts",
            hint=f"remove it from the profile, export it in your shell, and name it: pass_environment: [{found[0]}]",
        )
