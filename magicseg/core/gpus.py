"""List the GPUs that this process may use, without importing torch and without initialising a GPU.

An inherited list counts first: ``CUDA_VISIBLE_DEVICES``, or ``HIP_VISIBLE_DEVICES`` and ``ROCR_VISIBLE_DEVICES`` of
ROCm. Without a list, ``nvidia-smi`` is asked, then the files of AMD's kernel driver.
"""

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from magicseg.core.checks import ask
from magicseg.core.errors import ConfigError
from magicseg.core.shard_ranges import format_ranges
from magicseg.core.text import printable

CUDA = "CUDA_VISIBLE_DEVICES"
HIP = "HIP_VISIBLE_DEVICES"
ROCR = "ROCR_VISIBLE_DEVICES"
_ORDER = "CUDA_DEVICE_ORDER"
_NAME = re.compile(r"\d{1,4}|(?:GPU|MIG)-[\w/-]+", re.ASCII)
_KFD = Path("/sys/class/kfd/kfd/topology/nodes")
# nvidia-smi -L, on one line: GPU 0: NVIDIA A100 (UUID: GPU-1)  MIG 3g.20gb  Device  0: (UUID: MIG-1)  GPU 1: ...
_LISTED = re.compile(
    r"GPU (\d+): .*?\(UUID: (GPU-[\w-]+)\)|MIG \S*?(\d+)gb\S*\s+Device\s+\d+: \(UUID: (MIG-[\w/-]+)\)"
)
_TOTALS = re.compile(r"(\d+), (GPU-[\w-]+), (\d+)")
_HOW_TO_NAME = "--gpus 0,2   # or UUIDs, as nvidia-smi -L prints them"


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a part of one (MIG).

    ``name``: as in ``CUDA_VISIBLE_DEVICES``: ``0``, ``GPU-...`` or ``MIG-...``. ``environment``: the variables with
    which a process sees this device alone; they take effect before the process initialises CUDA.
    ``uuid``: another name of a device whose ``name`` is its index; "" if unknown.
    """

    name: str
    environment: Mapping[str, str]
    uuid: str = ""

    def is_called(self, word: str) -> bool:
        """Return whether ``word`` names it: its index, its UUID, or the beginning of its UUID."""
        return any(_is_same(word, full) for full in (self.name, self.uuid))


@dataclass(frozen=True)
class VisibleGpus:
    """The GPUs that this process may use. ``limit``: the inherited variable that lists them; None if none does."""

    gpus: tuple[Gpu, ...]
    limit: str | None = None

    def chosen(self, text: str) -> tuple[Gpu, ...]:
        """Return the GPUs that a list like ``0,2`` names, in its order.

        If no GPU was found and no variable limits them, the names are taken as they are.
        Raises ConfigError for a malformed list, and for a GPU that is not visible.
        """
        words = [word.strip() for word in text.split(",")]
        for word in words:
            if not _NAME.fullmatch(word):
                raise ConfigError(
                    f"--gpus: {printable(word, 40)!r} is neither the index nor the UUID of a GPU", hint=_HOW_TO_NAME
                )
        if not self.gpus and self.limit is None:
            found = [Gpu(word, {CUDA: word}) for word in words]
        else:
            found = [self._called(word) for word in words]
        twice = next((gpu.name for position, gpu in enumerate(found) if gpu in found[:position]), None)
        if twice is not None:
            raise ConfigError(
                f"--gpus names GPU {twice} twice", hint="--workers-per-gpu 2   # two workers on each of the GPUs"
            )
        return tuple(found)

    def _called(self, word: str) -> Gpu:
        called = [gpu for gpu in self.gpus if gpu.is_called(word)]
        if len(called) == 1:
            return called[0]
        if called:
            raise ConfigError(f"--gpus: several GPUs are called {word}...", hint="write the whole UUID")
        names = ",".join(gpu.name for gpu in self.gpus)
        if self.limit is None:
            raise ConfigError(f"--gpus: this machine has no GPU {word}", hint=f"--gpus {names}   # its GPUs")
        raise ConfigError(
            f"--gpus: {self.limit} does not list GPU {word}: it lists {names or 'none'}",
            hint=f"choose some of them, or start the command without {self.limit}",
        )


def visible_gpus(environment: Mapping[str, str] = os.environ) -> VisibleGpus:
    """Return the GPUs that this process may use. Takes as long as ``nvidia-smi``, if no variable lists them."""
    limit = next((name for name in (CUDA, HIP, ROCR) if name in environment), None)
    if limit is None:
        return VisibleGpus(tuple(_found(environment)))
    names = visible_names(environment[limit])
    # To ROCm, HIP_ and CUDA_VISIBLE_DEVICES are one setting with two names. ROCR_VISIBLE_DEVICES filters before them:
    # beside one of them it stays as it is, because their numbers count within it.
    both = visible_names(environment[HIP]) if limit == CUDA and HIP in environment else ()
    others = [{HIP: name} for name in both] if len(both) == len(names) else [{}] * len(names)
    return VisibleGpus(
        tuple(Gpu(name, {limit: name, **other}) for name, other in zip(names, others, strict=True)), limit
    )


def visible_names(text: str) -> tuple[str, ...]:
    """Return the devices in a value of ``CUDA_VISIBLE_DEVICES``, as CUDA reads it.

    An invalid entry, such as -1, ends the list. A list with a repeated device shows none.
    """
    names: list[str] = []
    for word in map(str.strip, text.split(",")):
        if not _NAME.fullmatch(word):
            break
        names.append(word)
    return tuple(names) if len(set(names)) == len(names) else ()


def shown_gpus(names: Iterable[str]) -> str:
    """Return the names of GPUs for a message: ``GPU 0``, ``GPUs 0-3``, ``GPUs MIG-1,MIG-2``."""
    known = list(dict.fromkeys(names))
    indices = format_ranges(int(name) for name in known if name.isdecimal())
    text = ",".join(filter(None, [indices, *(name for name in known if not name.isdecimal())]))
    return f"{'GPU' if len(known) == 1 else 'GPUs'} {text}"


def memory_of(gpus: Sequence[Gpu]) -> dict[str, int]:
    """Return the memory of GPUs in bytes, by name. GPUs of unknown memory are left out."""
    nvidia = any(CUDA in gpu.environment for gpu in gpus)
    known = dict(_nvidia_memory() if nvidia else _amd_memory())
    full = {gpu.name: next((each for each in known if _is_same(gpu.name, each)), gpu.name) for gpu in gpus}
    return {name: known[of] for name, of in full.items() if of in known}


def _is_same(name: str, full: str) -> bool:
    """Return whether ``name``, which may be the beginning of a UUID, names the device ``full``."""
    return name == full or (not name.isdecimal() and full.startswith(name))


def _found(environment: Mapping[str, str]) -> Iterator[Gpu]:
    """Yield the devices of this machine. MIG instances take the place of the GPU that they divide."""
    listed = _nvidia_list()
    # With this order CUDA counts as nvidia-smi does. A user's own order stays.
    order = {} if _ORDER in environment else {_ORDER: "PCI_BUS_ID"}
    for index, uuid, parts in listed:
        if parts:
            yield from (Gpu(part, {CUDA: part}) for part, _ in parts)
        else:
            yield Gpu(index, {CUDA: index, **order}, uuid)
    if not listed:
        yield from (Gpu(name, {HIP: name}) for name, _ in _amd_memory())


def _nvidia_list() -> list[tuple[str, str, list[tuple[str, int]]]]:
    """Return index, UUID and MIG instances (UUID, bytes) of each NVIDIA GPU."""
    code, text = ask(["nvidia-smi", "-L"])
    found: list[tuple[str, str, list[tuple[str, int]]]] = []
    for index, uuid, size, part in _LISTED.findall(text) if code == 0 else ():
        if uuid:
            found.append((index, uuid, []))
        elif found:
            found[-1][2].append((part, int(size) * 10**9))
    return found


def _nvidia_memory() -> Iterator[tuple[str, int]]:
    """Yield memory in bytes by index, by UUID, and by the UUID of MIG instances."""
    code, text = ask(["nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits"])
    for index, uuid, mebibytes in _TOTALS.findall(text) if code == 0 else ():
        yield from ((name, int(mebibytes) << 20) for name in (index, uuid))
    for _, _, parts in _nvidia_list():
        yield from parts


def _amd_memory(folder: Path | None = None) -> Iterator[tuple[str, int]]:
    """Yield index and memory in bytes of AMD GPUs, in the order in which HIP counts them.

    The kernel lists CPUs too, which have no SIMD units. GPUs that this process may not use are unreadable.
    """
    count = 0
    for node in sorted((folder or _KFD).glob("[0-9]*"), key=lambda path: int(path.name)):
        if not _properties(node / "properties").get("simd_count"):
            continue
        banks = map(_properties, node.glob("mem_banks/*/properties"))
        yield str(count), sum(bank.get("size_in_bytes", 0) for bank in banks)
        count += 1


def _properties(path: Path) -> dict[str, int]:
    """Return the numbers in a file of lines ``name number``; none if it cannot be read."""
    try:
        pairs = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
    except (OSError, ValueError):
        return {}
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
