"""Profiles: a site's job settings. Values are validated, so that none can add a line or an option to a job script.

profile = load_profile("gpu", overrides=["slurm.partition=low"])    # in magicseg.launch.profile_files
profile.resources("train").nodes
"""

import contextlib
import difflib
import os
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, ValidationInfo, field_validator, model_validator

from magicseg.config.stage_declarations import JOBS
from magicseg.core.paths import absolute
from magicseg.core.secrets import assigned_secret, secret_argument, secret_name, secret_value
from magicseg.core.setting_errors import Fault, first_fault
from magicseg.core.settings import Settings
from magicseg.core.text import printable
from magicseg.launch.gpus import OPTIONS as GPU_OPTIONS
from magicseg.launch.gpus import gpus_per_node
from magicseg.launch.quoting import (
    Argument,
    Bind,
    Line,
    Module,
    Operand,
    ShellLine,
    Size,
    TimeLimit,
    UrlPath,
    Word,
    bytes_of,
    minutes_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FOLLOW_UP = "follow-up"
if TYPE_CHECKING:
    JobName = str
else:
    JobName = Literal[(*JOBS, FOLLOW_UP)]


# sbatch options that magicseg sets. `extra` may not contain them; a profile has a separate key for some of them.
_RESERVED_NAMES = """
    account array chdir cluster clusters comment constraint cpus-per-task dependency error exclude export export-file
    exclusive gid gpus-per-node gpus-per-task gres help job-name kill-on-invalid-dep mail-type mail-user mem
    mem-per-cpu mem-per-gpu nodes no-requeue ntasks ntasks-per-gpu ntasks-per-node open-mode output parsable partition
    qos requeue signal tasks-per-node test-only time uid usage version wait wrap"""
_RESERVED = frozenset(_RESERVED_NAMES.split())
_MEMORY = ("memory", "memory_per_cpu", "memory_per_gpu")
SERVER_STAGE = "describe"  # its key `server` in `stages` is a `CaptionServer`, not a resource
_SERVER = "server"
Count = Annotated[int, Field(ge=0)]


class Resources(Settings):
    """The resources that one job, or one task of an array, requests."""

    model_config = ConfigDict(strict=False)  # profiles are read with numbers as text

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    exclude: Word | None = Field(None, description="nodes to avoid")
    gres: Word | None = Field(None, description="generic resources; for GPUs use `gpus`")
    gpus: Count | Word = Field(0, union_mode="left_to_right", description="GPUs per node: 4, or with a type a100:4")
    cpus: int = Field(1, ge=1, description="CPUs per task; for training, per node")
    memory: Size | None = Field("4G", description="per node; null: the site's default")
    memory_per_cpu: Size | None = Field(None, description="instead of `memory`")
    memory_per_gpu: Size | None = Field(None, description="instead of `memory`")
    time: TimeLimit = Field("1:00:00", description="the time limit, as Slurm writes it")
    exclusive: bool = Field(False, description="whole nodes, with all their GPUs")
    nodes: int = Field(1, ge=1, description="nodes for training")
    processes: int | None = Field(
        None, ge=1, description="training processes per node  [default: the GPUs per node, else 1]"
    )
    extra: dict[str, Line | bool] = Field(
        default_factory=dict, description="further sbatch options by their long names: {reservation: spring}"
    )

    @model_validator(mode="before")
    @classmethod
    def _normalised(cls, data: Any) -> Any:
        return _spelled(data) if isinstance(data, dict) else data

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name != "exclusive":
            raise ValueError("must be a string or a number, not a boolean")
        annotation = cls.model_fields[info.field_name].annotation if info.field_name else None
        if annotation in {int, int | None} and isinstance(value, str) and not re.fullmatch("[+-]?[0-9]{1,18}", value):
            raise ValueError("must be a whole number")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if sum(getattr(self, name) is not None for name in _MEMORY) > 1:
            raise ValueError(f"set only one of {', '.join(_MEMORY)}")
        self.gpus_per_node  # noqa: B018 - raises ValueError
        return self

    @field_validator("extra")
    @classmethod
    def _long_options(cls, extra: dict[str, str | bool]) -> dict[str, str | bool]:
        for name in extra:
            if not re.fullmatch(r"[a-z][a-z0-9-]+", name):
                raise ValueError(f"{name!r} is not a long sbatch option without its dashes")
            # sbatch accepts abbreviations: --outpu is --output. But --gpus is a full option, not an abbreviation.
            if name not in GPU_OPTIONS and any(reserved.startswith(name) for reserved in _RESERVED):
                raise ValueError(f"{name} is set by magicseg, or has a separate key in the profile")
        return extra

    @property
    def minutes(self) -> int:
        """Return the time limit in minutes, rounded up."""
        return minutes_of(self.time)

    @property
    def gpus_per_node(self) -> int:
        """Return the number of GPUs per node, for any of Slurm's ways to request them."""
        return gpus_per_node(self.gpus, self.gres, self.extra, self.nodes)

    @property
    def asks_gpu(self) -> bool:
        """Return whether GPUs are requested."""
        return self.gpus_per_node > 0

    @property
    def processes_per_node(self) -> int:
        """Return the number of training processes per node."""
        return self.processes or self.gpus_per_node or 1

    @property
    def memory_bytes(self) -> int | None:
        """Return the requested memory per node in bytes; None for the site's default."""
        if self.memory_per_cpu is not None:
            return bytes_of(self.memory_per_cpu) * self.cpus
        if self.memory_per_gpu is not None:
            return bytes_of(self.memory_per_gpu) * self.gpus_per_node or None
        return None if self.memory is None else bytes_of(self.memory)


def _spelled(data: "Mapping[Any, Any]") -> dict[Any, Any]:
    """Return resources with Slurm's GPU options, such as ``gpus_per_task``, moved to ``gpus`` or ``extra``.

    If memory is requested per CPU or GPU, the default memory per node is removed.
    """
    found = dict(data)
    for key in data:
        name = str(key).replace("_", "-")
        if name == "gpus-per-node":
            found["gpus"] = found.pop(key)
        elif name in GPU_OPTIONS and name != "gpus":
            found["extra"] = {**(found.get("extra") or {}), name: found.pop(key)}
    if any(found.get(name) is not None for name in _MEMORY[1:]):
        found.setdefault("memory", None)
    return found


class CaptionServer(Settings):
    """The server that a describe task starts for itself: a program that offers the OpenAI API on this machine."""

    model_config = ConfigDict(strict=False)

    command: tuple[Argument, ...] = Field(
        min_length=1, description="the program and its arguments; {host} and {port} are replaced in them"
    )
    port: int = Field(0, ge=0, le=65535, description="0: a free port for each task")
    health: UrlPath = Field("/health", description="path that the server answers with 200 once it is ready")
    wait: float = Field(600.0, gt=0, le=86400, description="time limit until the server is ready, in seconds")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.command[0].startswith("-"):
            raise ValueError("command must begin with a program, not with an option")
        if not self.port and not any("{port}" in word for word in self.command):
            raise ValueError("command must contain {port}, because each task chooses a free port")
        if secret_argument(self.command):
            raise ValueError("command must not contain a password or a key, which all users of the node can read: "
                             "pass a variable of the server's to the job (pass_environment)")  # fmt: skip
        return self

    def words(self, host: str, port: int) -> list[str]:
        """Return the command's words for an address."""
        return [word.replace("{host}", host).replace("{port}", str(port)) for word in self.command]


class ContainerSettings(Settings):
    """The container image that workers run in. Jobs are submitted from outside the container."""

    model_config = ConfigDict(strict=False)

    image: Operand = Field(description="path of the image")
    executable: Operand = Field("apptainer", description="apptainer or singularity: a name or a path")
    nv: bool | None = Field(None, description="NVIDIA's libraries in the container  [default: if GPUs are requested]")
    rocm: bool = Field(False, description="AMD's libraries in the container, instead of NVIDIA's")
    binds: tuple[Bind, ...] = Field(
        (), description="folders to bind besides the run's directory: SOURCE[:TARGET[:ro]]"
    )
    cache: Bind | None = Field(
        None,
        description="folder for the caches of weights and compilers; bound, and set in the libraries' variables",
    )
    verify: Operand | None = Field(None, description="file of the public key that must have signed the image")
    python: Operand = Field("python3", description="Python interpreter inside the image")

    @field_validator("image", "verify")
    @classmethod
    def _file(cls, path: str | None) -> str | None:
        """Make the path absolute, because jobs start in another folder."""
        return path if path is None else absolute(path)

    @field_validator("cache", "binds", mode="before")
    @classmethod
    def _with_home(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [cls._with_home(item) for item in value]
        return os.path.expanduser(value) if isinstance(value, str) else value

    @field_validator("cache")
    @classmethod
    def _folder(cls, path: str | None) -> str | None:
        if path is not None and (not path.startswith("/") or re.search("[:,]", path)):
            raise ValueError(f"{path!r} must be an absolute path without ':' and ','")
        return path


class Profile(Resources):
    """A site's settings: resources for all stages, overrides by stage, and the layout of arrays."""

    stages: dict[JobName, dict[str, Any]] = Field(
        default_factory=dict,
        description="resources of single stages, overriding the common ones; describe.server: see `CaptionServer`",
    )
    mail_user: Word | None = None
    mail_type: Word | None = Field(None, description="events to send mail for, such as END,FAIL")
    modules: tuple[Module, ...] = Field((), description="environment modules, loaded with `module load`")
    setup: tuple[ShellLine, ...] = Field((), description="shell lines to run before the work")
    environment: dict[str, str] = Field(
        default_factory=dict, description="environment variables, written into the job script: never secrets"
    )
    pass_environment: Literal["all"] | tuple[str, ...] = Field(
        "all", description="variables of the submitting shell that jobs inherit: all, or a list of names"
    )
    container: ContainerSettings | None = None
    parallel: int = Field(32, ge=1, description="concurrent array tasks")
    array_size: int | None = Field(None, ge=1, description="maximum tasks per array  [default: MaxArraySize]")
    tasks: int | None = Field(
        None, ge=1, description="maximum tasks per submission; tasks get more shards to stay below it"
    )
    shards_per_task: int | None = Field(
        None, ge=1, description="shards per array task  [default: from measured times]"
    )
    task_minutes: float | None = Field(
        None,
        gt=0,
        description="target minutes of work per task, if shard times are known  [default: half the time limit]",
    )
    stagger_seconds: float = Field(0.0, ge=0, le=60, description="delay between the starts of the first tasks")
    signal_seconds: int = Field(120, ge=1, le=3600, description="how long before the time limit Slurm warns the job")
    requeue: int = Field(10, ge=0, le=1000, description="maximum requeues of a task; 0: never")
    resubmit: int = Field(0, ge=0, le=1000, description="how often follow-up jobs submit missing work again")
    evaluation_tasks: int = Field(1, ge=1, description="array tasks that an evaluation's images are sharded across")
    restarts: int = Field(3, ge=0, description="training: how often torchrun restarts failed ranks")

    @field_validator("environment")
    @classmethod
    def _variables(cls, environment: dict[str, str]) -> dict[str, str]:
        for name, value in environment.items():
            _variable(name)
            if re.search("[\n\r\0\ud800-\udfff]", value):
                raise ValueError(f"{name} must be one line of text")
            if secret_name(name):
                raise ValueError(f"{name} looks secret, and a job script would store it: name it in pass_environment")
            if secret_value(value):
                raise ValueError(f"{name} holds a password or a key, which a job script would store: name it in "
                                 "pass_environment")  # fmt: skip
        return environment

    @field_validator("pass_environment")
    @classmethod
    def _names(cls, names: str | tuple[str, ...]) -> str | tuple[str, ...]:
        return names if isinstance(names, str) else tuple(_variable(name) for name in names)

    @model_validator(mode="after")
    def _stage_keys(self) -> Self:
        for stage in (*JOBS, FOLLOW_UP):
            with _named(f"stages.{stage}"):
                self.resources(stage)
        with _named(f"stages.{SERVER_STAGE}.{_SERVER}"):
            self.caption_server  # noqa: B018 - raises ValidationError
        return self

    @property
    def caption_server(self) -> CaptionServer | None:
        """Return the server that describe tasks start, if there is one."""
        values = self.stages.get(SERVER_STAGE, {}).get(_SERVER)
        return None if values is None else CaptionServer.model_validate(values)

    def resources(self, stage: str) -> Resources:
        """Return the resources of ``stage``'s jobs: the common values, overridden by the stage's values."""
        common = {name: getattr(self, name) for name in Resources.model_fields}
        if stage == FOLLOW_UP:  # needs one CPU for some seconds; a site may override this
            small = {"gpus": 0, "gres": None, "cpus": 1, "memory": "1G", "time": "10:00", "exclusive": False}
            common |= small | {"nodes": 1, "processes": None, "memory_per_cpu": None, "memory_per_gpu": None}
            common["extra"] = {name: value for name, value in self.extra.items() if name not in GPU_OPTIONS}
        specific = _spelled(self.stages.get(stage, {}))
        if stage == SERVER_STAGE:
            specific.pop(_SERVER, None)
        # A stage's memory setting replaces the common one.
        if any(specific.get(name) is not None for name in _MEMORY):
            common |= dict.fromkeys(_MEMORY)
        unknown = sorted(map(str, specific.keys() - common.keys()))
        if unknown:
            near = difflib.get_close_matches(unknown[0], common, n=1)
            raise ValueError(
                f"stages.{stage}.{unknown[0]} is not a key{f'; did you mean {near[0]}?' if near else ''}"
            )
        return Resources.model_validate(common | specific)

    def signal_before(self, stage: str) -> int:
        """Return how many seconds before the time limit tasks are warned: at most a quarter of the limit."""
        return min(self.signal_seconds, self.resources(stage).minutes * 15)


@contextlib.contextmanager
def _named(key: str) -> "Iterator[None]":
    """Raise a ValidationError of the block as a ValueError that names the key below ``key``."""
    try:
        yield
    except ValidationError as error:
        first = first_fault(error)
        path = ".".join(filter(None, [key, first.key]))
        raise ValueError(f"{path}: {first.message}{shown_input(first)}") from None


def _variable(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(f"{name!r} is not a valid name of a variable")
    return name


def shown_input(fault: Fault) -> str:
    """Return `` (got VALUE)`` for an error's message; an empty string for groups of values and possible secrets."""
    location, value = fault.location, fault.value
    if not location or location[0] in {"environment", "setup", "extra"} or isinstance(value, dict | list | tuple):
        return ""
    if assigned_secret(str(value)) or secret_value(str(value)):
        return ""
    return f" (got {printable(repr(value), 100)})"
