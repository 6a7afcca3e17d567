"""Mistakes in plug-in packages give error messages, not tracebacks."""

import pytest

from helpers.tiny_runs import make_run
from magicseg.core.errors import BackendError
from magicseg.installed_backends import find_backend

GOOD = """
from magicseg.core.settings import Settings
class Captioner:
    class Options(Settings):
        pass
    def __init__(self, settings, options): ...
    def identity(options): ...
    def describe(self, requests): ...
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that installs a package with a captioner: ``install("mine", "x = 1", "mine:Captioner")``."""

    def put(name, code, value, backend="mine"):
        folder = tmp_path / name
        info = folder / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[magicseg.captioners]\n{backend} = {value}\n")
        (folder / f"{name}.py").write_text(code)
        monkeypatch.syspath_prepend(folder)

    return put


def test_a_packages_back_end_is_found(install):
    install("found_plugin", GOOD, "found_plugin:Captioner")
    assert find_backend("captioners", "mine").__module__ == "found_plugin"


@pytest.mark.parametrize(
    ("name", "code", "seen"),
    [
        (
            "typing_plugin",
            "class Captionre: ...",
            "AttributeError: module 'typing_plugin' has no attribute 'Captioner'",
        ),
        ("syntax_plugin", "class Captioner", "SyntaxError"),
        ("library_plugin", "import no_such_library", "No module named 'no_such_library'"),
    ],
)
def test_a_back_end_that_cannot_be_imported_is_named_with_its_package(install, tmp_path, name, code, seen):
    install(name, code, f"{name}:Captioner")
    with pytest.raises(BackendError) as caught:
        make_run(tmp_path / "run", "describe.backend=mine")
    assert f"describe.backend: back end 'mine' ({name}:Captioner) cannot be imported" in caught.value.message
    assert seen in caught.value.message
    assert f"mend or reinstall {name}" in caught.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lacking", ["Options", "identity", "describe"])
def test_a_back_end_without_a_required_part_is_refused(install, tmp_path, lacking):
    name = f"no_{lacking.lower()}_plugin"
    install(name, GOOD.replace(f" {lacking}(", " other("), f"{name}:Captioner")
    with pytest.raises(BackendError, match=rf"back end 'mine' \({name}:Captioner\) lacks {lacking}$"):
        find_backend("captioners", "mine")


def test_two_packages_with_the_same_back_end_name_are_refused(install, tmp_path):
    install("shadow_plugin", GOOD, "shadow_plugin:Captioner", backend="grammar")
    with pytest.raises(BackendError, match=r"several packages have a back end 'grammar'.*: magicseg, shadow_plugin"):
        make_run(tmp_path / "run")


@pytest.mark.usefixtures("faulty")
def test_errors_name_the_options_of_nested_back_ends(tmp_path, magicseg):
    wrong = "mask.options={detector: {backend: corner, options: {missing: 1}}, segmenter: {backend: patches}}"
    done = magicseg("init", "run", "--preset", "painted", "--set", "mask.backend=detect-segment", "--set", wrong)
    assert done.code == 2
    assert "detector.options does not fit back end 'corner': missing" in done.err
    assert "its options: missing_below" in " ".join(done.err.split())
