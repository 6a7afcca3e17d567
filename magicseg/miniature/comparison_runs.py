"""The demo's comparison runs: training on exact masks, and training without the counterfactual loss."""

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from magicseg.config.evaluation import MINIATURE, OWN_MASKS
from magicseg.config.loading import validate_config
from magicseg.core.errors import IncompleteError
from magicseg.core.text import command
from magicseg.run.directory import Run

_STOP_GRACE_SECONDS = 30.0


def create_comparison_runs(run: Run) -> list[Run]:
    """Create or open the comparison runs of a miniature run.

    ``RUN-exact-masks`` uses the painter's images and exact masks: an upper bound. ``RUN-no-counterfactual-loss``
    trains on the samples of ``run``.

    Raises: the errors of `Run.create`.
    """
    settings = run.config.model_dump(mode="json")
    stages = {name: settings[name] for name in ("generate", "mask")}
    painter = {name: {**stage, "backend": "painter", "options": {}} for name, stage in stages.items()}
    painter["generate"]["validity"] = None
    changes: Mapping[str, Mapping[str, Any]] = {
        "exact-masks": painter,
        "no-counterfactual-loss": {
            "train": {
                **settings["train"],
                "counterfactual_weight": 0.0,
                "held_out": 0,
                "sources": [{"run": str(run.path)}],
            }
        },
    }
    # Only a run's own samples can be held out, and the second comparison run has none.
    benchmarks = [name for name in settings["evaluate"]["benchmarks"] if name != OWN_MASKS] or [MINIATURE]
    alone = {"evaluate": {**settings["evaluate"], "baselines": [], "benchmarks": benchmarks}}
    return [
        Run.create(
            run.path.with_name(f"{run.path.name}-{name}"),
            validate_config({**settings, **alone, **change}, source="the demo's settings"),
        )
        for name, change in changes.items()
    ]


@contextlib.contextmanager
def running(runs: Sequence[Run]) -> Iterator[None]:
    """Run whole pipelines in child processes during the block, and wait for them at its end.

    The processes are stopped if the block raises. Raises: IncompleteError if a process fails.
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
    """Stop a process at its next checkpoint, from which it can be resumed."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_STOP_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_GRACE_SECONDS)
