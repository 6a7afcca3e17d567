"""docs/plugins.md and its example: installed by pip, with the guide's commands run and their results checked."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from setuptools import find_namespace_packages

from helpers.tiny_runs import CommandLine
from magicseg import backends
from magicseg.core.errors import PlanMismatch
from magicseg.installed_backends import find_backend
from magicseg.run import Run
from magicseg.stages.mask.class_map import agreement

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "example-plugin"
GUIDE = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")

pytestmark = pytest.mark.timeout(900)  # two data sets, each stage in processes that import torch


class Typed:
    """Runs the guide's commands in a copy of the example's folder, and keeps their results."""

    def __init__(self, folder):
        self.folder, self.site = folder / "example-plugin", folder / "site"
        # A copy, because building leaves files beside the sources.
        shutil.copytree(EXAMPLE, self.folder, ignore=shutil.ignore_patterns("build", "*.egg-info", "__pycache__"))
        options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation", "--no-index"]
        subprocess.run(
            [sys.executable, "-m", "pip", "install", *options, "--target", self.site, self.folder], check=True
        )
        path = os.pathsep.join(filter(None, [str(self.site), os.environ.get("PYTHONPATH")]))
        plain = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1", "PYTHONWARNINGS": "ignore"}
        self.magicseg = CommandLine(self.folder, {**os.environ, "PYTHONPATH": path, **plain})
        self.results = {}

    def type_all(self):
        for line in re.findall(r"^    (magicseg .*)$", GUIDE.replace("\\\n", " "), re.MULTILINE):
            done = self.results[line] = self.magicseg.typed(line)
            expected = (0, 1) if "doctor" in line else (0,)  # doctor also checks other things
            assert done.code in expected, f"{line}\n{done.err}"
        return self


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    return Typed(tmp_path_factory.mktemp("plugin"))


@pytest.fixture(scope="module")
def typed(installed):
    return installed.type_all()


@pytest.fixture
def run(typed, monkeypatch):
    """Return the guide's run, with the example package also importable in this process."""
    monkeypatch.syspath_prepend(typed.site)
    return Run.open(typed.folder / "RUN")


@pytest.mark.slow
def test_the_commands_of_the_guide_end_in_two_equal_data_sets(typed):
    one, two = (typed.results[f"magicseg digest {name}"].out for name in ("RUN", "AGAIN"))
    assert re.fullmatch(r"[0-9a-f]{64}\n", one)
    assert one == two


@pytest.mark.slow
def test_samples_without_a_colour_are_dropped_with_the_examples_reason(typed, run):
    kept = [offset for offset in range(run.plan.samples) if _names(run, offset).isdisjoint({"glass vase"})]
    captions = run.store.read("describe/captions", 0, run.plan.samples)
    assert [offset for offset in range(run.plan.samples) if captions[offset][0]] == kept
    assert f"no-colour {run.plan.samples - len(kept)}" in typed.results["magicseg status RUN"].out
    for offset in kept:
        assert all(f"one {name}" in captions[offset][0] for name in _names(run, offset))
        assert re.fullmatch("A photo of an empty (table|floor)", captions[offset][1])
    assert len({captions[offset][1] for offset in kept}) == 2, "the seed chooses the place"


@pytest.mark.slow
def test_masks_cover_the_differences_between_the_images_of_a_pair(run):
    count = run.plan.samples
    images, empty = (run.store.read_images(f"generate/{name}", 0, count) for name in ("image", "counterfactual"))
    masks = run.store.read("mask/mask", 0, count)
    kept = [offset for offset in range(count) if _names(run, offset).isdisjoint({"glass vase"})]
    assert len(kept) > count / 2
    assert len({images[offset].tobytes() for offset in kept}) == len(kept)
    for offset in kept:
        differing = (images[offset] != empty[offset]).any(axis=2)
        assert 0.02 < differing.mean() < 0.6
        assert agreement(masks[offset] > 0, differing) > 0.9
        assert set(np.unique(masks[offset])) == {0, *run.plan.label_ids(offset)}


def _names(run, offset):
    return {run.vocabulary.by_id(id_).name for id_ in run.plan.label_ids(offset)}


@pytest.mark.slow
def test_doctor_lists_the_examples_back_ends(typed):
    said = typed.results["magicseg doctor RUN"].out
    for stage, name in (("describe", "colours"), ("generate", "discs"), ("mask", "detect-segment; imports .*scipy")):
        assert re.search(rf"ok +│ {stage}: back end +│ {name}", said), said


@pytest.mark.slow
def test_a_changed_recipe_number_makes_the_run_stale(run, monkeypatch):
    import magicseg_colours.detector

    assert len(run.checked_commits("mask")) == run.plan.shards
    monkeypatch.setattr(magicseg_colours.detector, "RECIPE", 2)
    with pytest.raises(PlanMismatch, match=r"generate\.validity\.backend\.detector\.colours is 2, was 1"):
        Run.open(run.path).checked_commits("generate")


@pytest.mark.slow
def test_a_run_names_the_missing_package_of_its_back_end(typed, magicseg):
    done = magicseg("status", typed.folder / "RUN")
    assert done.code == 2
    assert "there is no back end 'colours'" in done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "seen"),
    [
        ("describe.options.place=[sea]", "back end 'colours': place: "),
        ("generate.options.grain=50", "back end 'discs': grain: "),
        ("generate.validity.detector.options.tolerance=0", "back end 'colours': tolerance: "),
        ("mask.options.segmenter.options.threshold=1", "back end 'colour-threshold': threshold: "),
    ],
)
def test_a_wrong_option_of_the_example_is_refused_by_name(installed, setting, seen):
    done = installed.magicseg("init", "WRONG", "--config", "example.yaml", "--set", setting)
    assert done.code == 2
    assert seen in " ".join(done.err.split())
    assert not (installed.folder / "WRONG").exists()


def holds(text, excerpt):
    """Return whether a text contains an excerpt's lines, ignoring common indentation and blank lines."""
    lines, wanted = ([line for line in part.splitlines() if line.strip()] for part in (text, excerpt))
    cuts = (lines[start : start + len(wanted)] for start in range(len(lines)))
    return any(dedent("\n".join(cut)) == dedent("\n".join(wanted)) for cut in cuts)


def test_the_code_in_the_guide_equals_the_examples_code():
    files = [
        *EXAMPLE.glob("*.*"),
        *(EXAMPLE / "src").rglob("*.py"),
        ROOT / "magicseg" / "vision" / "shipped_models.py",
    ]
    texts = [path.read_text(encoding="utf-8") for path in files]
    blocks = re.findall(r"^```\w+\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    assert [block for block in blocks if not any(holds(text, block) for text in texts)] == []
    inline = 'quality={"radii": radii}'
    assert f"`{inline}`" in GUIDE
    assert any(inline in text for text in texts)


def test_the_guide_lists_all_entry_point_groups():
    rows = re.findall(r"^\| `magicseg\.(\w+)` \|.*?\| `(\w+)` \| `(\w+)` \| (.*) \|$", GUIDE, re.MULTILINE)
    shipped = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["entry-points"]
    assert {f"magicseg.{kind}" for kind, *_ in rows} == set(shipped)
    for kind, method, request, answers in rows:
        name = next(iter(shipped[f"magicseg.{kind}"]))
        assert callable(getattr(find_backend(kind, name), method))
        for value in (request, *re.findall(r"`(\w+)`", answers)):
            assert hasattr(backends, value), value


def test_the_magicseg_package_does_not_contain_the_example():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    found = find_namespace_packages(str(ROOT), **wanted["find"])
    assert "magicseg.stages.mask" in found
    assert [name for name in found if name.split(".")[0] != "magicseg"] == []
