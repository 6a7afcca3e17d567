"""The text of Apptainer.def: required content, and equality with the Dockerfile."""

import re
import textwrap
from pathlib import Path

import pytest

import magicseg

TOP = Path(__file__).parents[2]
DEFINITION = (TOP / "Apptainer.def").read_text()
DOCKERFILE = (TOP / "containers/Dockerfile").read_text()


def section(name, which=-1):
    """Return the lines of a section, without indentation and comments."""
    found = re.findall(rf"^%{name}\n(.*?)(?=^%|^Bootstrap:|\Z)", DEFINITION, re.MULTILINE | re.DOTALL)
    lines = (line.strip() for line in found[which].splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def defaults(which):
    return dict(line.split("=", 1) for line in section("arguments", which))


def shared(text, name):
    body = re.search(rf"^[ ]*# begin {name}\n(.*?)^[ ]*# end {name}\n", text, re.MULTILINE | re.DOTALL)[1]
    return textwrap.dedent(body)


@pytest.mark.parametrize("name", ["wheels", "final", "test"])
def test_dockerfile_and_definition_run_the_same_commands(name):
    assert shared(DEFINITION, name)
    assert shared(DOCKERFILE, name) == shared(DEFINITION, name)


def test_dockerfile_and_definition_have_the_same_base_arguments_files_environment_and_labels():
    arguments = dict(re.findall(r"^ARG (\w+)=(.*)$", DOCKERFILE, re.MULTILINE))
    assert arguments == {name: value for name, value in (defaults(0) | defaults(1)).items() if name != "BOOTSTRAP"}
    copied = re.findall(r"^COPY (\w\S*) (\S+)$", DOCKERFILE, re.MULTILINE)
    # Docker copies links as links; Apptainer copies what magicseg/slurm points to.
    assert sorted(copied) == sorted([*(tuple(line.split()) for line in section("files")), ("slurm", "/src/slurm")])
    assert re.findall(r"^ENV (\S+)$", DOCKERFILE, re.MULTILINE) == [
        line.removeprefix("export ") for line in section("environment")
    ]
    labels = dict(re.findall(r'^LABEL (\S+)="(.*)"$', DOCKERFILE, re.MULTILINE))
    assert labels == dict(line.split(" ", 1) for line in section("labels")) | {
        "org.opencontainers.image.revision": "${COMMIT}",
        "magicseg.variant": "${VARIANT}",
    }
    assert 'exec magicseg "$@"' in section("runscript")
    assert 'ENTRYPOINT ["magicseg"]' in DOCKERFILE


def test_the_stages_of_the_definition_have_the_same_defaults():
    first, second = defaults(0), defaults(1)
    assert {name: value for name, value in first.items() if name in second} == {
        name: value for name, value in second.items() if name in first
    }
    assert re.search(r"@sha256:[0-9a-f]{64}$", first["BASE"]), "the base is pinned by its digest"


def test_every_argument_is_used_in_its_stage():
    for which, text in enumerate(re.split(r"^Bootstrap:", DEFINITION, flags=re.MULTILINE)[1:]):
        head, _, _ = text.partition("%files" if which else "%arguments")
        for name in defaults(which):
            assert f"{{{{ {name} }}}}" in f"{head}{text}", name


def test_the_image_overrides_no_variable_that_users_may_set():
    assert section("environment") == ["export PATH=/magicseg/bin:$PATH", "export PYTHONNOUSERSITE=1"]


def test_the_package_s_data_are_in_the_copied_folders():
    assert (TOP / "magicseg/slurm").resolve() == TOP / "slurm"
    assert Path(magicseg.__file__).parent == TOP / "magicseg"
