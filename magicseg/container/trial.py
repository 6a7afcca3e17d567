"""Test an image on this machine, without a cluster, to find problems that would otherwise appear in a job."""

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from magicseg.container.runtime import Flag, Runtime, call, command, inside
from magicseg.core.checks import Check, Status, ask, attempt
from magicseg.core.errors import ContainerError
from magicseg.core.package import package_version
from magicseg.data.shared_memory import check_shared_memory, default_need

LIBRARIES = (
    *("torch", "torchvision", "torchmetrics", "safetensors", "diffusers", "transformers", "tokenizers", "accelerate"),
    *("sentencepiece", "google.protobuf", "openai", "scipy", "segment_anything", "groundingdino", "open_clip"),
    *("tensorboard", "zarr", "h5py"),
)
# Libraries must not use the network.
_ALONE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
_VERSIONS = """
import json, platform, torch, magicseg
print(json.dumps({"magicseg": magicseg.__version__, "Python": platform.python_version(), "torch": torch.__version__}))
"""
_IMPORTS = """
import importlib, json, sys
failed = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(failed))
"""
_GPU = """
import json, torch
names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
print(json.dumps({"names": names, "for_gpus": bool(torch.version.cuda or torch.version.hip)}))
"""
_SHARED = """
import json
from magicseg.data.shared_memory import free_bytes
print(json.dumps(free_bytes() or 0))
"""
_LISTENER = """
import signal, sys, time
for number in map(int, sys.argv[1:]):
    signal.signal(number, lambda which, _: sys.exit(which + 20))
print("ready", flush=True)
time.sleep(60)
"""
_START_SECONDS = 120.0
_FORWARDING_SECONDS = 1.0  # right after its start, the runtime does not forward signals yet
_SIGNALS = (signal.SIGTERM, signal.SIGUSR2)  # the end of a job, and Slurm's warning before it


@dataclass(frozen=True)
class Trial:
    """An image under test, its runtime and flags, and a folder for its output."""

    runtime: Runtime
    image: Path
    flags: tuple[Flag, ...]
    folder: Path

    def words(self, *arguments: str, binds: tuple[str, ...] = ()) -> list[str]:
        """Return a command line that runs ``arguments`` in the image, with the folder bound."""
        return command(
            self.runtime, "exec", self.image, arguments, binds=(str(self.folder), *binds), flags=self.flags
        )

    def do(
        self, *arguments: str, binds: tuple[str, ...] = (), before: tuple[str, ...] = (), **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in the image, offline.

        Args: before: words before the command line. variables: environment variables inside the image.
        """
        return call([*before, *self.words(*arguments, binds=binds)], inside(self.runtime, _ALONE | variables))

    def json(self, *arguments: str) -> Any:
        """Run a command in the image and parse its last line as JSON. Raises ContainerError if that fails."""
        done = self.do(*arguments)
        try:
            return json.loads(done.stdout.strip().splitlines()[-1])
        except (ValueError, IndexError, RecursionError):
            raise ContainerError(f"exit code {done.returncode}: {_end_of(done)}") from None


def try_image(
    runtime: Runtime, image: Path, flags: tuple[Flag, ...], report: Callable[[Check, float], None]
) -> list[Check]:
    """Run all checks. Report each check with its duration in seconds as it ends."""
    done = []
    with tempfile.TemporaryDirectory(prefix="magicseg-image-") as folder:
        for check, seconds in _checks(Trial(runtime, image, flags, Path(folder))):
            report(check, seconds)
            done.append(check)
            if check.name == "starts" and check.status is Status.FAILED:
                break  # the other checks would fail too
    return done


def _checks(trial: Trial) -> Iterator[tuple[Check, float]]:
    looks: dict[str, Callable[[Trial], Check]] = {
        "starts": starts,
        "versions": versions,
        "imports": imports,
        "GPU": gpu,
        "exit codes": exit_codes,
        "signals": signals,
        "binds": binds,
        "shared memory": shared_memory_inside,
        "miniature, offline": miniature,
        "files left": files_left,
        "torchrun, two processes": torchrun,
    }
    for name, look in looks.items():
        began = time.monotonic()
        check = attempt(name, lambda look=look: look(trial))  # type: ignore[misc]
        yield replace(check, name=name), time.monotonic() - began


def _end_of(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return " | ".join(lines[-3:])[-500:] or "no output"


def _outcome(done: "subprocess.CompletedProcess[str]", seen: str, remedy: str | None = None) -> Check:
    if done.returncode == 0:
        return Check("", Status.OK, seen)
    return Check("", Status.FAILED, f"exit code {done.returncode}: {_end_of(done)}", remedy)


def starts(trial: Trial) -> Check:
    """Check that the image starts, and name the flags that it starts with."""
    words = " ".join(word for flag in trial.flags for word in flag.words)
    done = trial.do("true")
    seen = f"{trial.runtime.shown}, {words or 'no flags'}"
    remedy = "is it an image, and do user namespaces work here? apptainer --debug exec IMAGE true says more"
    return _outcome(done, seen, remedy)


def versions(trial: Trial) -> Check:
    """Check that magicseg has the same version inside the image and on this machine."""
    found = trial.json("python3", "-c", _VERSIONS)
    seen = ", ".join(f"{name} {version}" for name, version in found.items())
    if found["magicseg"] == package_version():
        return Check("", Status.OK, seen)
    return Check(
        "",
        Status.FAILED,
        f"{seen}; but this machine has magicseg {package_version()}, and jobs require equal versions",
        "build the image again, or install the image's version here",
    )


def imports(trial: Trial) -> Check:
    """Check that every library that a back end may need can be imported."""
    failed = trial.json("python3", "-W", "ignore", "-c", _IMPORTS, *LIBRARIES)
    if failed:
        detail = "; ".join(f"{name}: {why}" for name, why in failed.items())
        return Check("", Status.FAILED, detail[:800], "build the image again")
    return Check("", Status.OK, f"{len(LIBRARIES)} libraries")


def gpu(trial: Trial) -> Check:
    """Check that torch inside the image sees this machine's GPUs."""
    words = [word for flag in trial.flags for word in flag.words]
    if "--nv" in words or "--rocm" in words:
        found = trial.json("python3", "-c", _GPU)
        if found["names"]:
            return Check("", Status.OK, f"torch sees {', '.join(found['names'])}")
        if not found["for_gpus"]:
            return Check("", Status.NOTE, "there is a GPU here, but torch in the image is a build for CPUs")
        return Check(
            "",
            Status.FAILED,
            "there is a GPU here, but torch in the image sees none",
            "check the image's variant (cuda, rocm) and the driver: nvidia-smi prints its CUDA version",
        )
    bare = Flag(("--nv",), "")
    done = replace(trial, flags=(*trial.flags, bare)).do("true")
    if done.returncode:
        return Check("", Status.FAILED, f"--nv without a GPU: {_end_of(done)}")
    return Check("", Status.NOTE, "no GPU here; --nv does no harm")


def exit_codes(trial: Trial) -> Check:
    """Check that the runtime returns a worker's exit code unchanged."""
    codes = [trial.do("sh", "-c", f"exit {code}").returncode for code in (0, 1, 75)]
    if codes == [0, 1, 75]:
        return Check("", Status.OK, "0, 1 and 75 come out")
    return Check("", Status.FAILED, f"0, 1 and 75 come out as {codes}", "jobs cannot tell a stop from a failure")


def signals(trial: Trial) -> Check:
    """Check that the runtime forwards a job's signals to the worker."""
    for number in _SIGNALS:
        wanted = number + 20
        listener = ("python3", "-c", _LISTENER, *(str(int(each)) for each in _SIGNALS))
        with subprocess.Popen(
            trial.words(*listener),
            env=inside(trial.runtime, _ALONE),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                if select.select([process.stdout], [], [], _START_SECONDS)[0]:
                    process.stdout.readline()
                time.sleep(_FORWARDING_SECONDS)
                process.send_signal(number)
                code = process.wait(30)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                process.kill()
        if code != wanted:
            detail = "nothing within 30 s" if code is None else f"exit code {code}"
            return Check("", Status.FAILED, f"{number.name}: {detail}, not {wanted}", "jobs would not stop in time")
    return Check("", Status.OK, f"{' and '.join(number.name for number in _SIGNALS)} come in")


def binds(trial: Trial) -> Check:
    """Check that a folder can be bound to another path, and read-only."""
    given = trial.folder / "given"
    given.mkdir()
    (given / "word").write_text("abracadabra\n")
    bind = (f"{given}:/mnt:ro",)
    read = trial.do("cat", "/mnt/word", binds=bind)
    written = trial.do("sh", "-c", "echo x >/mnt/other", binds=bind)
    if read.stdout != "abracadabra\n":
        return Check("", Status.FAILED, f"a bound file cannot be read: {_end_of(read)}", "ask your site about --bind")
    if written.returncode == 0 or (given / "other").exists():
        return Check("", Status.FAILED, "a folder that was bound read-only was written to")
    return Check("", Status.OK, "bound elsewhere, and read-only")


def shared_memory_inside(trial: Trial) -> Check:
    """Check that the batches of a training with default settings fit in the image's shared memory."""
    return check_shared_memory(default_need(), free=int(trial.json("python3", "-c", _SHARED)))


def miniature(trial: Trial) -> Check:
    """Run the short demo in a folder of the host, without a network if possible."""
    cut_off = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-current-user", "--net"]
    alone = ask([*cut_off, *trial.words("true")])[0] == 0
    run = str(trial.folder / "run")
    done = trial.do("magicseg", "demo", run, "--short", "--workers", "1", before=tuple(cut_off) if alone else ())
    check = _outcome(done, "describe, generate, mask, train, evaluate, report", "the image is not usable")
    if check.status is Status.FAILED or alone:
        return replace(check, seen=f"{check.seen}; no network" if alone else check.seen)
    return Check("", Status.NOTE, f"{check.seen}; with a network: a namespace without one cannot be made here")


def files_left(trial: Trial) -> Check:
    """Check that the files written from inside the image belong to the user and are writable."""
    paths = [path for path in trial.folder.rglob("*") if "run" in path.relative_to(trial.folder).parts[:1]]
    if not paths:
        return Check("", Status.FAILED, "the miniature left no files")
    foreign = [path for path in paths if path.lstat().st_uid != os.getuid()]
    closed = [path for path in paths if not os.access(path, os.W_OK)]
    if foreign or closed:
        odd = (foreign or closed)[0]
        what = f"belongs to user {odd.lstat().st_uid}" if foreign else "cannot be written by you"
        return Check(
            "", Status.FAILED, f"{odd.relative_to(trial.folder)} {what}", "ask your site about its Apptainer"
        )
    return Check("", Status.OK, f"{len(paths)} files and folders, all of user {os.getuid()}")


def torchrun(trial: Trial) -> Check:
    """Check that training runs on two ranks. It uses CPUs, because not every machine has two GPUs."""
    run = str(trial.folder / "run")
    if not (trial.folder / "run").exists():
        return Check("", Status.FAILED, "the miniature left no data to train on")
    reset = trial.do("magicseg", "reset", "train", run, "--yes")
    if reset.returncode:
        return _outcome(reset, "")
    words = ("python3", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "magicseg")
    done = trial.do(*words, "train", run, CUDA_VISIBLE_DEVICES="", HIP_VISIBLE_DEVICES="")
    card = trial.folder / "run" / "model" / "model.json"
    with contextlib.suppress(OSError, ValueError, KeyError):
        if json.loads(card.read_bytes())["provenance"]["world_size"] != 2:
            return Check("", Status.FAILED, "the two processes did not join one training")
    return _outcome(done, "one training of both")
