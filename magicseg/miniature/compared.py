"""What the demo's score stands beside: the same training on exact masks, and without the counterfactual loss."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from magicseg.config.loading import validate_config
from magicseg.core.errors import IncompleteError
from magicseg.core.text import command
from magicseg.run.directory import Run

_STOP_GRACE_SECONDS = 30.0


def make_compared(run: Run) -> list[Run]:
    """The runs beside a run of the miniature, made or opened: ``RUN-exact-masks``, whose images and masks are the
    painter's own (the upper bound), and ``RUN-no-counterfactual-loss``, which trains on the samples of ``run``.

    Raises: what `Run.create` raises.
    """
    settings = run.config.model_dump(mode="json")
    stages = {name: settings[name] for name in ("generate", "mask")}
    painter = {name: {**stage, "backend": "painter", "options": {}} for name, stage in stages.items()}
    painter["generate"]["validity"] = None
    changes: Mapping[str, Mapping[str, Any]] = {
        "exact-masks": painter,
        "no-counterfactual-loss": {
            "train": {**settings["train"], "counterfactual_weight": 0.0, "sources": [{"run": str(run.path)}]}
        },
    }
    alone = {"evaluate": {**settings["evaluate"], "baselines": []}}
    return [
        Run.create(
            run.path.with_name(f"{run.path.name}-{name}"),
            validate_config({**settings, **alone, **change}, source="the demo's settings"),
        )
        for name, change in changes.items()
    ]


@contextlib.contextmanager
def doing(runs: Sequence[Run]) -> Iterator[None]:
    """Do whole runs in processes of their own, meanwhile; at the end of the block they are waited for.

    Raises: IncompleteError if one of them ends otherwise than well. They are stopped if the block raises.
    """
    with contextlib.ExitStack() as stack:
        begun: list[tuple[Run, subprocess.Popen[bytes], IO[bytes]]] = []
        for run in runs:
            said: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
            words = [sys.executable, "-m", "magicseg", "run", str(run.path), "--workers", "1"]
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said)
            stack.callback(_stop, process)
            begun.append((run, process, said))
        yield
        for run, process, said in begun:
            if process.wait() != 0:
                said.seek(0)
                end = said.read().decode(errors="replace").strip().splitlines()[-3:]
                raise IncompleteError(
                    f"{run.path}: is not done (exit code {process.returncode}): {' / '.join(end)}",
                    hint=command("magicseg", "run", run.path),
                )


def _stop(process: "subprocess.Popen[bytes]") -> None:
    """What was begun ends at its next checkpoint, and goes on from there when asked again."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_GRACE_SECONDS)
