"""What the submitting shell's variables mean for a submission: sbatch's own, and those that hold secrets."""

import json
import os
import re

from magicseg.config import Config
from magicseg.core.secrets import assigned_secret
from magicseg.errors import ConfigError
from magicseg.launch.profile import Profile

# sbatch would let a variable win over a job script. Here it counts where the profile says nothing.
_TAKEN = {
    "SBATCH_ACCOUNT": "account",
    "SBATCH_PARTITION": "partition",
    "SBATCH_QOS": "qos",
    "SBATCH_CONSTRAINT": "constraint",
    "SBATCH_RESERVATION": "extra.reservation",
    "SBATCH_WCKEY": "extra.wckey",
}
# Of no consequence for a job, or set by Slurm inside of one.
_IGNORED = re.compile("SBATCH_(DEBUG|COLOR|WAIT_PREFIX|(CPU|MEM)_BIND.*)")


def site_overrides(profile: Profile) -> tuple[list[str], list[str]]:
    """Return overrides for what ``SBATCH_*`` variables say and the profile does not, and sentences for the user.

    An override is ``slurm.KEY=VALUE``. The sentences name what is taken and what is left out. Inside of a job, where
    the variables may be meant for that job, all are left out.
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
        said = profile.extra.get(option) if group else getattr(profile, option)
        if said is None:
            overrides.append(f"slurm.{key}={json.dumps(os.environ[name])}")
            taken.append(f"{name} ({option})")
        elif said != os.environ[name]:
            dropped.append(name)
    told = [f"of your environment, for what the profile does not say: {', '.join(taken)}"] if taken else []
    if dropped:
        told.append(f"of your environment, not used: {', '.join(dropped)}; the profile says what jobs ask for")
    return overrides, told


def refuse_named_secrets(config: Config, profile: Profile) -> None:
    """Raise ConfigError if the profile writes a variable into job scripts that a back end reads a key from.

    Such a variable is named by an option that ends in ``_env``, as ``describe.options.api_key_env`` does.
    """
    named = {
        str(value): f"{stage}.options.{key}"
        for stage in ("describe", "generate", "mask")
        for key, value in getattr(config, stage).options.items()
        if key.endswith("_env") and value
    }
    written = {re.sub("^(APPTAINER|SINGULARITY)ENV_", "", name) for name in profile.environment}
    assigned = {name for line in profile.setup if (name := assigned_secret(line, named)) is not None}
    found = sorted((written | assigned) & named.keys())
    if found:
        raise ConfigError(
            f"{found[0]} holds the key that {named[found[0]]} names, and the profile would write it into job files",
            hint=f"take it out of the profile, export it in your shell, and name it: pass_environment: [{found[0]}]",
        )
