"""Fixtures: stand-ins for Slurm's commands, a PATH without Slurm, golden files."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.stand_ins import StandIns
from helpers.tiny_runs import CommandLine, do, make_run
from magicseg.container.image import Image
from magicseg.run import Run

GOLDEN = Path(__file__).parent / "golden"
REWRITE = "MAGICSEG_REWRITE_GOLDEN"


@pytest.fixture(autouse=True)
def _outside_of_any_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "SBATCH_", "MAGICSEG_PROFILE")):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _profiles_images_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    def identified(path: Path) -> Image:
        return Image(path, f"sha256:{'ab' * 32}", 4242, 1_700_000_000)

    monkeypatch.setattr("magicseg.launch.job_image.identify", identified)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    """A PATH that holds only stand-ins for Slurm's commands."""
    stand_ins = StandIns(tmp_path / "slurm")
    stand_ins.install()
    monkeypatch.setenv("PATH", str(stand_ins.path))
    return stand_ins


@pytest.fixture
def no_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty PATH."""
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))


@pytest.fixture
def on_cluster(slurm: StandIns, magicseg: CommandLine) -> CommandLine:
    """The command line, with the stand-ins on its PATH."""
    return CommandLine(magicseg.folder, magicseg.environment | {"PATH": str(slurm.path)})


@pytest.fixture(scope="session")
def described_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose first stage is finished. Tests must not change it."""
    run = make_run(tmp_path_factory.mktemp("described") / "run")
    do(run, "describe")
    return run


@pytest.fixture
def described(described_run: Run, copy_of: Callable[[Run], Run]) -> Run:
    """A copy of the run whose first stage is finished, for one test."""
    return copy_of(described_run)


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compare a text with the file of this name in tests/launch/golden.

    To write the files anew: ``MAGICSEG_REWRITE_GOLDEN=1 pytest tests/launch``, then look at the difference.
    """

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get(REWRITE):
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path} is missing; {REWRITE}=1 pytest tests/launch writes it"
        known = path.read_text(encoding="utf-8")
        assert text == known, f"differs from {path.name}; if that is meant: {REWRITE}=1 pytest tests/launch"

    return compare
