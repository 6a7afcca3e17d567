"""Small runs, made once and copied; the command line as users meet it."""

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
from magicseg.core.garbage_collection import relax
from magicseg.run import Run
from magicseg.run.digest import logical_digest

relax()  # with all libraries loaded, looking for cycles is a fortieth of the tests' time

# On a busy machine an example may take any time.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

PLUGINS = Path(__file__).parent / "faults" / "plugins"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How ``pytest -n 2`` shares the tests out, unless ``--dist`` says otherwise."""
    if config.getvalue("dist") != "load":
        return None
    from helpers.xdist_groups import KeptTogether

    return KeptTogether(config, log)


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the back ends called ``faulty`` installed (for started commands they always are)."""
    monkeypatch.syspath_prepend(PLUGINS)


@pytest.fixture
def magicseg(tmp_path: Path) -> CommandLine:
    """The command line, started in the test's own folder."""
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
    """A run whose stages are all done. Not to be changed: see `copy_of`."""
    run = make_run(tmp_path_factory.mktemp("finished") / "run")
    do(run)
    return run


@pytest.fixture(scope="session")
def expected_digest(finished_run: Run) -> str:
    """What every undisturbed or disturbed run of these settings must hold."""
    return logical_digest(finished_run)


@pytest.fixture(scope="session")
def jpeg_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """As `finished_run`, with JPEG images. Not to be changed."""
    run = make_run(tmp_path_factory.mktemp("jpeg") / "run", "store.image_codec=jpeg")
    do(run)
    return run


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Run], Run]:
    """A copy of a run that a test may do with what it likes."""
    numbers = iter(range(1000))

    def copy(run: Run) -> Run:
        path = tmp_path / f"copy{next(numbers)}"
        shutil.copytree(run.path, path)
        return Run.open(path)

    return copy


@pytest.fixture
def finished(finished_run: Run, copy_of: Callable[[Run], Run]) -> Run:
    """A finished run of the test's own."""
    return copy_of(finished_run)


@pytest.fixture
def fresh(tmp_path: Path) -> Run:
    """A run of the test's own with nothing done."""
    return make_run(tmp_path / "run")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB of the test's own."""
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
    """The folder of real data: `MAGICSEG_TEST_DATA`, else `../shared/data` beside the repository."""
    given = os.environ.get("MAGICSEG_TEST_DATA")
    folder = Path(given) if given else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not (folder / "VOCdevkit" / "VOC2012").is_dir():
        pytest.skip(f"no real data at {folder}: set MAGICSEG_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model by its name, made when it is first asked for; not to be changed."""
    return Checkpoints(tmp_path_factory.mktemp("checkpoints")).get


@pytest.fixture
def models_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of the test's own, and afterwards as many threads in torch as before."""
    import torch

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def quick_linker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For torch.compile, which links dozens of small libraries with torch's large ones: the other linker, if any."""
    gold = shutil.which("ld.gold")
    if gold is not None:
        (tmp_path / "linker").mkdir()
        (tmp_path / "linker/ld").symlink_to(gold)
        monkeypatch.setenv("COMPILER_PATH", str(tmp_path / "linker"))
