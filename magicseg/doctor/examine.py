"""Run all checks in order."""

from pathlib import Path

from magicseg.core.checks import Check, Status, attempt
from magicseg.doctor.machine_checks import machine_checks
from magicseg.doctor.run_checks import run_checks
from magicseg.run.directory import Run


def examine(path: Path | None = None) -> list[Check]:
    """Check this machine, and the run at ``path`` if it is given."""
    checks = list(machine_checks(path if path is not None and path.is_dir() else Path.cwd()))
    if path is None:
        return checks
    opened: list[Run] = []

    def look() -> Check:
        opened.append(Run.open(path))
        return Check("run", Status.OK, str(opened[0].path))

    checks.append(attempt("run", look))
    for run in opened:
        checks += run_checks(run)
    return checks
