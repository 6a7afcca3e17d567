"""Profiles: what a site wants to know of a job, validated, so that no value can add a line or an option.

    profile = load_profile("gpu", overrides=["slurm.partition=low"])
    profile.resources("train").nodes

A profile is a YAML file. A bare name is one of the shipped ones (``slurm/profiles/NAME.yaml``).
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from magicseg.errors import ConfigError
from magicseg.run.fingerprint import STAGES
from magicseg.settings import Settings

JOBS = (*STAGES, "train", "evaluate")  # in the order in which they are done
FOLLOW_UP = "follow-up"
_OVERRIDE = "slurm."


def _one_line(text: str) -> str:
    if not text or not text.isprintable() or text != text.strip():
        raise ValueError("must be one line of printable text, without spaces around it")
    return text


def _word(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_(\[][\w.,:=@%&|*!()\[\]/+-]*", text, re.ASCII):
        raise ValueError("must be one word that begins with a letter, a digit or a bracket")
    return text


def _module(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][\w.+/@-]*", text, re.ASCII):
        raise ValueError("is not the name of a module")
    return text


def _size(text: str) -> str:
    if not re.fullmatch(r"[1-9]\d*[KMGT]?", text, re.ASCII):
        raise ValueError("is a number with K, M, G or T behind it: 16G")
    return text


def _shell_line(text: str) -> str:
    if _one_line(text).startswith("#"):
        raise ValueError("must not begin with '#': sbatch would take #SBATCH and #PBS for its own")
    if text.endswith("\\"):
        raise ValueError("must not end with a backslash, which would swallow the next line")
    return text


def _bind(text: str) -> str:
    if not re.fullmatch(r"[^\s:,]+(:[^\s:,]+(:r[ow])?)?", _one_line(text)):
        raise ValueError("is SOURCE, SOURCE:TARGET or SOURCE:TARGET:ro")
    return text


def _minutes_of(text: str) -> int:
    """Whole minutes of a Slurm time limit: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text, re.ASCII)
    if match is None:
        raise ValueError("is a time limit as Slurm writes them: 90 (minutes), 4:00:00, 1-12:00:00")
    days, *rest = match.groups()
    first, second, third = (int(part or 0) for part in rest)
    if days is not None:
        seconds = int(days) * 86400 + first * 3600 + second * 60 + third
    elif match[4] is not None:
        seconds = first * 3600 + second * 60 + third
    else:
        seconds = first * 60 + second
    if seconds < 1:
        raise ValueError("is no time at all")
    return math.ceil(seconds / 60)


def _time(text: str) -> str:
    _minutes_of(text)
    return text


Word = Annotated[str, AfterValidator(_word)]
Line = Annotated[str, AfterValidator(_one_line)]

# What magicseg itself sets; a profile has its own key for it, or none.
_RESERVED = {
    *(
        "account",
        "array",
        "chdir",
        "comment",
        "constraint",
        "cpus-per-task",
        "dependency",
        "error",
        "exclude",
        "export",
    ),
    *(
        "exclusive",
        "gpus-per-node",
        "gres",
        "help",
        "job-name",
        "kill-on-invalid-dep",
        "mail-type",
        "mail-user",
        "mem",
    ),
    *("nodes", "no-requeue", "ntasks", "ntasks-per-node", "open-mode", "output", "parsable", "partition", "qos"),
    *("requeue", "signal", "tasks-per-node", "test-only", "time", "wait", "wrap"),
    *("export-file", "mem-per-cpu", "mem-per-gpu"),  # these exclude what magicseg sets
}


class Resources(Settings):
    """What one job, or one task of an array, asks for."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    exclude: Word | None = Field(None, description="nodes not to use")
    gres: Word | None = Field(None, description="generic resources; for plain GPUs `gpus` is enough")
    gpus: int = Field(0, ge=0, description="GPUs per node")
    cpus: int = Field(1, ge=1, description="CPUs per task; for training, per node")
    memory: Annotated[str, AfterValidator(_size)] = Field("4G", description="per node")
    time: Annotated[str, AfterValidator(_time)] = Field("1:00:00", description="the time limit, as Slurm writes it")
    exclusive: bool = Field(False, description="whole nodes")
    nodes: int = Field(1, ge=1, description="of training")
    processes: int | None = Field(
        None, ge=1, description="training processes per node  [default: the GPUs per node, else 1]"
    )
    extra: dict[str, Line | bool] = Field(
        default_factory=dict, description="further sbatch options by their long names: {reservation: spring}"
    )

    @field_validator("extra")
    @classmethod
    def _long_options(cls, extra: dict[str, str | bool]) -> dict[str, str | bool]:
        for name in extra:
            if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
                raise ValueError(f"{name!r} is not a long sbatch option without its dashes")
            # sbatch takes abbreviations: --outpu is --output. But --gpus is an option, too.
            if name != "gpus" and any(own.startswith(name) for own in _RESERVED):
                raise ValueError(f"{name} is set by magicseg or has a key of its own")
        return extra

    @property
    def minutes(self) -> int:
        """The time limit in whole minutes, rounded up."""
        return _minutes_of(self.time)

    @property
    def processes_per_node(self) -> int:
        """Training processes on each node."""
        return self.processes or self.gpus or 1


class ContainerSettings(Settings):
    """The image that the workers run in. Submission itself happens outside."""

    image: Line = Field(description="path of the image")
    executable: Line = Field("apptainer", description="apptainer or singularity: a name or a path")
    nv: bool | None = Field(None, description="NVIDIA's libraries in the container  [default: where GPUs are asked]")
    binds: tuple[Annotated[str, AfterValidator(_bind)], ...] = Field(
        (), description="besides the run's directory: SOURCE[:TARGET[:ro]]"
    )
    python: Line = Field("python3", description="the interpreter in the image")


class Profile(Resources):
    """A site: resources for every stage, exceptions by stage, and how arrays are laid out."""

    stages: dict[Literal["describe", "generate", "mask", "train", "evaluate", "follow-up"], dict[str, Any]] = Field(
        default_factory=dict, description="resources of single stages, over the common ones"
    )
    mail_user: Word | None = None
    mail_type: Word | None = Field(None, description="END,FAIL and the like")
    modules: tuple[Annotated[str, AfterValidator(_module)], ...] = Field((), description="for `module load`")
    setup: tuple[Annotated[str, AfterValidator(_shell_line)], ...] = Field(
        (), description="shell lines before the work, each one line"
    )
    environment: dict[str, str] = Field(
        default_factory=dict, description="variables written into the job script: nothing secret"
    )
    pass_environment: Literal["all"] | tuple[str, ...] = Field(
        "all", description="the submitting shell's variables that jobs get: all, or a list of names"
    )
    container: ContainerSettings | None = None
    parallel: int = Field(32, ge=1, description="array tasks at a time")
    array_size: int | None = Field(None, ge=1, description="most tasks in one array  [default: MaxArraySize]")
    tasks: int | None = Field(None, ge=1, description="most tasks of one submission; tasks grow to fit")
    shards_per_task: int | None = Field(None, ge=1, description="[default: from measured times]")
    task_minutes: float | None = Field(
        None, gt=0, description="work to give a task, where times are known  [default: half the time limit]"
    )
    stagger_seconds: float = Field(0.0, ge=0, le=60, description="between the starts of the first tasks")
    signal_seconds: int = Field(120, ge=1, le=3600, description="warning before the time limit")
    requeue: int = Field(10, ge=0, le=1000, description="how often a task goes back into the queue; 0: never")
    resubmit: int = Field(0, ge=0, le=1000, description="how often a follow-up job submits what is missing")
    restarts: int = Field(3, ge=0, description="training: how often torchrun starts dead ranks again")

    @field_validator("environment")
    @classmethod
    def _variables(cls, environment: dict[str, str]) -> dict[str, str]:
        for name, value in environment.items():
            _variable(name)
            if re.search("[\n\r\0\ud800-\udfff]", value):
                raise ValueError(f"{name} must be one line of text")
            if re.search(r"TOKEN(?!IZER)|SECRET|PASSW|API_?KEY", name, re.IGNORECASE):
                raise ValueError(f"{name} looks secret and would lie in a job file: name it in pass_environment")
        return environment

    @field_validator("pass_environment")
    @classmethod
    def _names(cls, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return names if isinstance(names, str) else tuple(_variable(name) for name in names)

    @model_validator(mode="after")
    def _stage_keys(self) -> Self:
        for stage in (*JOBS, FOLLOW_UP):
            try:
                self.resources(stage)
            except ValidationError as error:
                first = error.errors(include_url=False)[0]
                key = _key(first["loc"])
                message = first["msg"].removeprefix("Value error, ")
                raise ValueError(f"stages.{stage}.{key}: {message} (got {first['input']!r})") from None
        return self

    def resources(self, stage: str) -> Resources:
        """What ``stage``'s jobs ask for: the common values with the stage's own over them."""
        common = {name: getattr(self, name) for name in Resources.model_fields}
        if stage == FOLLOW_UP:  # a few seconds of one CPU, unless the site wants it elsewhere
            small = {"gpus": 0, "gres": None, "cpus": 1, "memory": "1G", "time": "10:00", "exclusive": False}
            common |= small | {"nodes": 1, "processes": None}
        own: Mapping[str, Any] = self.stages.get(stage, {})  # type: ignore[call-overload]
        unknown = sorted(own.keys() - common.keys())
        if unknown:
            near = difflib.get_close_matches(unknown[0], common, n=1)
            raise ValueError(
                f"stages.{stage}.{unknown[0]} is not a key{f'; did you mean {near[0]}?' if near else ''}"
            )
        return Resources.model_validate(common | dict(own))

    def signal_before(self, stage: str) -> int:
        """Seconds before the time limit at which tasks are told to stop: never more than a quarter of it."""
        return min(self.signal_seconds, self.resources(stage).minutes * 15)


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"{name!r} is not the name of a variable")
    return name


class _Loader(yaml.SafeLoader):
    """Numbers stay text until the settings say what they are: in YAML 1.1, 4:00:00 is the number 14400."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[-1] in {"bool", "null", "merge"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _shipped() -> Traversable:
    return files("magicseg") / "slurm" / "profiles"


def profile_names() -> list[str]:
    """The shipped profiles."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _shipped().iterdir() if entry.name.endswith(".yaml"))


def profile_text(name: str) -> str:
    """A shipped profile's file. Raises: ConfigError if there is none of this name."""
    if name not in profile_names():
        raise ConfigError(
            f"there is no profile {name!r}",
            hint=f"profiles: {', '.join(profile_names())}; or the path of a file, PATH.yaml",
        )
    return (_shipped() / f"{name}.yaml").read_text(encoding="utf-8")


def load_profile(reference: str, overrides: Sequence[str] = ()) -> Profile:
    """A shipped profile by its name, or a file by its path, with ``slurm.KEY=VALUE`` overrides.

    Raises: ConfigError naming the file and the key.
    """
    if re.fullmatch(r"[\w-]+", reference):
        text = profile_text(reference)
    else:
        try:
            text = Path(reference).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{reference}: is not a profile that can be read: {error}",
                hint=f"profiles: {', '.join(profile_names())}; or the path of a file, PATH.yaml",
            ) from None
    data = _parse(text, reference)
    if not isinstance(data, dict):
        raise ConfigError(f"{reference}: holds {type(data).__name__}, not a mapping of settings")
    for override in overrides:
        _apply(data, override)
    return validate_profile(data, reference)


def validate_profile(data: Mapping[str, Any], source: str) -> Profile:
    """Check plain data against `Profile`. Raises: ConfigError naming the first offending key."""
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise _explain(error, source) from None


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{source}: is not YAML: {error}", hint="quote values with ': ' or ' #' in them") from None


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not key.startswith(_OVERRIDE) or key == _OVERRIDE:
        raise ConfigError(f"--set {override!r} is not of the form slurm.KEY=VALUE", hint="--set slurm.partition=low")
    node = data
    *groups, name = key.removeprefix(_OVERRIDE).split(".")
    for group in groups:
        child = node.get(group)
        if child is None:
            child = node[group] = {}
        if not isinstance(child, dict):
            raise ConfigError(
                f"--set {override!r}: {group} is a value, not a group of settings", hint=f"--set slurm.{group}=VALUE"
            )
        node = child
    node[name] = _parse(text, f"--set {override!r}")


def _key(location: Sequence[int | str]) -> str:
    """Where a value is, without pydantic's own names of types and alternatives: ``literal['all']``, ``[key]``."""
    return ".".join(str(part) for part in location if not re.fullmatch(r"[\w-]*\[.*\]", str(part)))


def _explain(error: ValidationError, source: str) -> ConfigError:
    first = error.errors(include_url=False)[0]
    key = _key(first["loc"])
    if first["type"] == "extra_forbidden":
        known = ContainerSettings.model_fields if key.startswith("container.") else Profile.model_fields
        near = difflib.get_close_matches(key.rsplit(".", 1)[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return ConfigError(f"{source}: {key} is not a key of a profile", hint=hint)
    message = first["msg"].removeprefix("Value error, ")
    where = f"{source}: {key}" if key else source
    got = f" (got {first['input']!r})" if key else ""
    return ConfigError(f"{where}: {message}{got}", hint="docs/cluster.md lists a profile's keys")
