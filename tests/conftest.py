"""Shared fixtures: small runs, created once and copied, and the command line in a subprocess."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from helpers.model_runs import Checkpoints
from helpers.tiny_runs import CommandLine, do, make_run
from magicseg.core.garbage_collection import collect_less_often
from magicseg.run import Run
from magicseg.run.digest import logical_digest

collect_less_often()  # with all libraries loaded, garbage collection takes a fortieth of the tests' time

# No deadline: on a busy machine an example may take any time.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

PLUGINS = Path(__file__).parent / "faults" / "plugins"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return the scheduler of ``pytest -n 2``, unless ``--dist`` selects another."""
    if config.getvalue("dist") != "load":
        return None
    from helpers.xdist_groups import KeptTogether

    return KeptTogether(config, log)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install the back ends called ``faulty`` in this process. In started commands they are always installed."""
    monkeypatch.syspath_prepend(PLUGINS)


@pytest.fixture
def magicseg(tmp_path: Path) -> CommandLine:
    """Return the command line, started in the test's temporary folder."""
    paths = os.pathsep.join(filter(None, [str(PLUGINS), os.environ.get("PYTHONPATH")]))
    environment = {
        **os.environ,
        "PYTHONPATH": paths,
        "COLUMNS": "200",
        "TERM": "dumb",
        "NO_COLOR": "1",
        "PYTHONWARNINGS": "ignore",
    }
    return CommandLine(tmp_path, environment)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run whose stages are all finished. Do not modify it: see `copy_of`."""
    run = make_run(tmp_path_factory.mktemp("finished") / "run")
    do(run)
    return run


@pytest.fixture(scope="session")
def expected_digest(finished_run: Run) -> str:
    """Return the digest that every run with these settings must have, disturbed or not."""
    return logical_digest(finished_run)


@pytest.fixture(scope="session")
def jpeg_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run like `finished_run`, with JPEG images. Do not modify it."""
    run = make_run(tmp_path_factory.mktemp("jpeg") / "run", "store.image_codec=jpeg")
    do(run)
    return run


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Run], Run]:
    """Return a function that copies a run, so that a test may modify the copy."""
    numbers = iter(range(1000))

    def copy(run: Run) -> Run:
        path = tmp_path / f"copy{next(numbers)}"
        shutil.copytree(run.path, path)
        return Run.open(path)

    return copy


@pytest.fixture
def finished(finished_run: Run, copy_of: Callable[[Run], Run]) -> Run:
    """Return a copy of the finished run that the test may modify."""
    return copy_of(finished_run)


@pytest.fixture
def fresh(tmp_path: Path) -> Run:
    """Return a new run without finished shards."""
    return make_run(tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 4 MB for the test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], check=False, capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a small tmpfs needs root: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of real data: `MAGICSEG_TEST_DATA`, else `../shared/data` beside the repository."""
    given = os.environ.get("MAGICSEG_TEST_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "VOCdevkit" / "VOC2012").is_dir():
        pytest.skip(f"no real data at {folder}: set MAGICSEG_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from the name of a tiny model to its folder, created on first use. Do not modify it."""
    return Checkpoints(tmp_path_factory.mktemp("checkpoints")).get


@pytest.fixture
def models_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use a temporary cache, and restore torch's number of threads afterwards."""
    import torch

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick_linker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a faster linker if installed, because torch.compile links dozens of libraries with torch's large ones."""
    gold = shutil.which("ld.gold")
    if gold is not None:
        (tmp_path / "linker").mkdir()
        (tmp_path / "linker/ld").symlink_to(gold)
        monkeypatch.setenv("COMPILER_PATH", str(tmp_path / "linker"))
