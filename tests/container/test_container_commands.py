"""``magicseg container`` with a stand-in for Apptainer: commands, flags, errors and their remedies."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from magicseg.container import build as building
from magicseg.container import runtime as running
from magicseg.container.build import Build, build_checks, build_flags, find_checkout
from magicseg.container.image import identify
from magicseg.container.runtime import find_runtime, has_subordinate_ids, start_flags
from magicseg.container.trial import try_image
from magicseg.core.checks import Status
from magicseg.core.errors import ContainerError

TOP = Path(__file__).parents[2]
STAND_IN = """#!{python}
import json, os, sys
words = sys.argv[1:]
if words == ["--version"]:
    print({version!r})
elif words[0] == "inspect":
    print(json.dumps({{"data": {{"attributes": {{"labels": {labels!r}}}}}}}))
elif words[0] == "buildcfg":
    sys.exit(1)
elif words == ["build", "--help"]:
    print("--mksquashfs-args" if {version!r} >= "apptainer version 1.4" else "--force")
elif words[0] == "build" and "--mksquashfs-args" in words and {version!r} < "apptainer version 1.4":
    sys.exit("unknown flag: --mksquashfs-args")
elif words[0] == "verify":
    sys.exit("FATAL: signature not valid" if {bad!r} else 0)
else:
    print(json.dumps({{"words": words, "image": os.environ.get("APPTAINERENV_MAGICSEG_IMAGE")}}))
    sys.exit({code})
"""


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Create stand-ins for Apptainer of any version, at the front of the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def make(name="apptainer", version="apptainer version 1.4.5", labels=None, bad=False, code=0):
        file = folder / name
        file.write_text(
            STAND_IN.format(python=sys.executable, version=version, labels=labels or {}, bad=bad, code=code)
        )
        file.chmod(0o755)
        return file

    return make


@pytest.fixture
def command(tools, magicseg):
    """The command line, with the stand-in on its PATH."""
    tools()
    magicseg.environment["PATH"] = os.environ["PATH"]
    magicseg.environment["XDG_CACHE_HOME"] = os.environ["XDG_CACHE_HOME"]
    return magicseg


def as_user(monkeypatch, *, root=False, capable=False, ids=True, namespaces=None):
    monkeypatch.setattr(building, "privileges", lambda: (root, capable))
    monkeypatch.setattr(running, "privileges", lambda: (root, capable))
    monkeypatch.setattr(building, "has_subordinate_ids", lambda: ids)
    monkeypatch.setattr(building, "namespaces_work", lambda: namespaces)


def check_of(name, wanted):
    checks = {check.name: check for check in build_checks(wanted, find_runtime())}
    return checks[name]


@pytest.fixture
def wanted(tmp_path, tools):
    tools()
    return Build(checkout=TOP, image=tmp_path / "new.sif")


# ------------------------------------------------------------ building


def test_a_dry_run_of_a_build_shows_the_command_and_starts_nothing(command, tmp_path):
    (tmp_path / "base.sif").touch()
    (tmp_path / "wheels").mkdir()
    result = command(
        *("container", "build", "new image.sif", "--variant", "cpu", "--base", "base.sif"),
        *("--torch", "wheels", "--bind", f"{tmp_path}/wheels", "--dry-run"),
    )
    assert result.code == 0, result.err
    folder, _, line = result.out.strip().partition(" && ")
    assert folder == f"cd {TOP}"
    words = shlex.split(line)
    assert words[1] == "build"
    assert words[-2:] == [f"{tmp_path}/new image.sif", "Apptainer.def"]
    values = [words[position + 1] for position, word in enumerate(words) if word == "--build-arg"]
    assert [value for value in values if not value.startswith("COMMIT=")] == [
        *(f"BASE={tmp_path}/base.sif", "BOOTSTRAP=localimage", f"TORCH={tmp_path}/wheels", "VARIANT=cpu"),
    ]
    assert words[words.index("--bind") + 1] == f"{tmp_path}/wheels"
    assert not (tmp_path / "new image.sif").exists()
    for flag in building.build_flags(find_runtime()):
        assert f"flag {' '.join(flag.words)}: {flag.why}" in result.err


def test_the_default_base_is_the_definition_s(command):
    line = command("container", "build", "--dry-run").out
    assert "BASE=" not in line
    assert "BOOTSTRAP=" not in line
    assert "VARIANT=cuda" in line


@pytest.mark.parametrize("reference", ["docker.io/library/python:3.12-slim", "docker://python:3.12-slim"])
def test_a_base_that_is_not_a_file_is_a_registry_reference(command, reference):
    line = command("container", "build", "--base", reference, "--dry-run").out
    assert f"BASE={reference.removeprefix('docker://')} " in line
    assert "BOOTSTRAP=docker " in line


def test_a_failed_build_exits_with_2_and_a_message(command, tools):
    tools(code=255)
    result = command("container", "build", "a.sif")
    assert result.code == 2
    assert "the build ended with 255, and there is no new image" in result.err


def test_an_image_is_replaced_only_with_force(command, tmp_path):
    (tmp_path / "a.sif").touch()
    result = command("container", "build", "a.sif", "--dry-run")
    assert result.code == 2
    assert "a.sif exists" in result.err
    assert "--force replaces it" in result.err
    assert " --force " in command("container", "build", "a.sif", "--force", "--dry-run").out


@pytest.mark.parametrize(
    ("name", "version", "status"),
    [
        ("apptainer", "apptainer version 1.2.0", Status.OK),
        ("apptainer", "apptainer version 1.1.9", Status.FAILED),
        ("singularity", "singularity-ce version 4.1.0", Status.OK),
        ("singularity", "singularity version 3.8.7", Status.FAILED),
        ("singularity", "apptainer version 1.3.0-1", Status.OK),
    ],
)
def test_a_runtime_too_old_for_build_arguments_cannot_build(tools, wanted, name, version, status):
    tools(name, version)
    checks = {check.name: check for check in build_checks(wanted, find_runtime(name))}
    assert checks["version"].status is status
    assert status is Status.OK or "containers/README.md" in checks["version"].remedy


@pytest.mark.parametrize(("version", "packs"), [("1.2.0", False), ("1.3.6", False), ("1.4.0", True)])
def test_packing_arguments_are_passed_only_to_versions_that_accept_them(command, tools, version, packs):
    tools(version=f"apptainer version {version}")
    result = command("container", "build", "a.sif")
    assert result.code == 0, result.err
    assert ("--mksquashfs-args" in json.loads(result.out)["words"]) is packs
    done = subprocess.run(
        [TOP / "containers/build.sh", "b.sif"], cwd=command.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert ("--mksquashfs-args" in json.loads(done.stdout)["words"]) is packs


@pytest.mark.parametrize(
    ("words", "told", "remedy"),
    [
        (["--base", "lost.sif"], "--base lost.sif: there is no such file", "a SIF file"),
        (["--base", "~/python"], "--base ~/python: there is no such file", "a SIF file"),
        (["--torch", "https://me:secret@index.site/simple"], "contains a user name", "pip.conf"),
        (["nowhere/a.sif"], "nowhere: there is no such folder", "mkdir -p"),
    ],
)
def test_invalid_builds_are_refused_before_they_start(command, words, told, remedy):
    result = command("container", "build", *words, "--dry-run")
    assert (result.code, result.out) == (2, "")
    assert told in result.err
    assert remedy in result.err
    assert "secret" not in result.err


def test_a_missing_temporary_folder_is_reported(command):
    command.environment["APPTAINER_TMPDIR"] = "/nowhere"
    result = command("container", "build", "--dry-run")
    assert result.code == 2
    assert "/nowhere: there is no such folder" in result.err


def test_a_folder_of_wheels_that_is_not_bound_is_reported(command):
    result = command("container", "build", "--torch", "/srv/wheels", "--dry-run")
    assert result.code == 0
    assert "warning: base and wheels: --torch /srv/wheels: is not bound" in result.err
    assert "--bind /srv/wheels" in result.err
    bound = command("container", "build", "--torch", "/mnt/torch", "--bind", "/srv/wheels:/mnt:ro", "--dry-run")
    assert "is not bound" not in bound.err


def test_without_any_runtime_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ContainerError, match="apptainer and singularity: not on the PATH") as caught:
        find_runtime()
    assert "load the site's module" in caught.value.hint


def test_a_dry_run_of_a_build_needs_no_runtime_on_this_machine(command, tmp_path):
    command.environment["PATH"] = str(tmp_path / "empty")
    shown = command("container", "build", "a.sif", "--dry-run")
    assert shown.code == 0, shown.err
    assert "apptainer build " in shown.out
    assert "apptainer: not on this machine" in shown.err
    assert command("container", "build", "a.sif").code == 2


def test_no_space_for_the_build_names_the_variable_to_set(command, small_disk):
    command.environment["APPTAINER_TMPDIR"] = str(small_disk)
    result = command("container", "build", "--dry-run")
    assert result.code == 2
    assert re.search(rf"{small_disk}: [\d.]+ [kM]B free, about 20 GB needed: not enough", result.err)
    assert "export APPTAINER_TMPDIR=FOLDER" in result.err


def test_missing_space_for_the_image_is_reported_before_the_build(command, small_disk):
    result = command("container", "build", small_disk / "a.sif", "--dry-run")
    assert result.code == 2
    assert re.search(rf"{small_disk}: [\d.]+ [kM]B free: not enough", result.err)


def test_without_subordinate_ids_the_command_that_adds_them_is_shown(monkeypatch, wanted, tmp_path):
    as_user(monkeypatch, ids=False)
    local = Build(checkout=TOP, image=tmp_path / "a.sif", base=str(tmp_path))
    check = check_of("rights", local)
    assert check.status is Status.FAILED
    assert "no ids in /etc/subuid and /etc/subgid" in check.seen
    assert "usermod --add-subuids 100000-165535 --add-subgids 100000-165535" in check.remedy
    # For a registry image, Apptainer can use the fakeroot command.
    there = {"apptainer", "fakeroot"}
    monkeypatch.setattr(building.shutil, "which", lambda name: f"{tmp_path}/bin/apptainer" if name in there else None)
    assert check_of("rights", wanted).status is Status.WARNING
    there.remove("fakeroot")
    assert check_of("rights", wanted).status is Status.FAILED


def test_without_user_namespaces_a_build_on_another_machine_is_suggested(monkeypatch, wanted):
    as_user(monkeypatch, namespaces="unshare: unshare failed: Operation not permitted")
    check = check_of("rights", wanted)
    assert check.status is Status.FAILED
    assert "Operation not permitted" in check.seen
    assert "user.max_user_namespaces" in check.remedy
    assert "containers/README.md" in check.remedy
    # A runtime that is setuid root, or has its own AppArmor rule, may create namespaces that others cannot.
    monkeypatch.setattr(running, "_APPARMOR", (Path(__file__),))
    assert check_of("rights", wanted).status is Status.WARNING


def test_flags_depend_on_the_user_s_privileges(monkeypatch, wanted):
    as_user(monkeypatch, root=True, capable=True)
    assert [flag.words[0] for flag in build_flags(find_runtime())] == ["--mksquashfs-args"]
    assert start_flags(find_runtime()) == []
    as_user(monkeypatch, root=True, capable=False)
    assert [flag.words[0] for flag in build_flags(find_runtime())] == ["--fakeroot", "--mksquashfs-args"]
    assert [flag.words for flag in start_flags(find_runtime())] == [("--userns",)]
    as_user(monkeypatch)
    assert start_flags(find_runtime()) == []
    monkeypatch.setattr(running, "_NVIDIA", Path("/dev/null"))
    (flag,) = start_flags(find_runtime())
    assert flag.words == ("--nv",)
    assert "NVIDIA" in flag.why


def test_subordinate_ids_are_found_by_name_or_number_and_must_be_in_both_files(tmp_path):
    name = os.popen("id -un").read().strip()
    for uids, gids, there in (
        (f"{name}:100000:65536\n", f"{os.getuid()}:100000:65536\n", True),
        (f"{name}:100000:65536\n", "", False),
        (f"{name}x:100000:65536\n", f"{name}x:100000:65536\n", False),
    ):
        (tmp_path / "subuid").write_text(uids)
        (tmp_path / "subgid").write_text(gids)
        assert has_subordinate_ids(tmp_path) is there
    assert has_subordinate_ids(tmp_path / "nowhere") is False


def test_without_a_definition_the_message_suggests_a_clone(tmp_path):
    with pytest.raises(ContainerError, match=r"there is no Apptainer\.def") as caught:
        find_checkout(tmp_path)
    assert "--source" in caught.value.hint


# ------------------------------------------------------------ starting


@pytest.mark.parametrize(
    ("typed", "given"),
    [
        (["run", "IMAGE", "generate", "RUN", "--workers", "2"], ["generate", "RUN", "--workers", "2"]),
        (["exec", "IMAGE", "python3", "-c", "import torch; print(1)"], ["python3", "-c", "import torch; print(1)"]),
        (["shell", "IMAGE"], []),
        (["run", "--bind", "/data:/d:ro", "IMAGE", "--help"], ["--help"]),
    ],
)
def test_arguments_and_the_digest_reach_the_image_unchanged(command, tmp_path, typed, given):
    image = tmp_path / "an image.sif"
    image.write_bytes(b"abc")
    result = command("container", *(str(image) if word == "IMAGE" else word for word in typed))
    assert result.code == 0, result.err
    told = json.loads(result.out)
    assert told["words"][0] == typed[0]
    assert told["words"][told["words"].index(str(image)) + 1 :] == given
    assert told["words"].count("--bind") == 1 + typed.count("--bind")
    assert str(tmp_path) in told["words"], "the present folder is seen inside"
    assert told["image"] == identify(image).digest


def test_the_exit_code_of_the_command_in_the_image_is_returned(command, tools, tmp_path):
    (tmp_path / "a.sif").touch()
    tools(code=75)
    assert command("container", "exec", "a.sif", "true").code == 75


def test_a_dry_run_prints_the_command_and_starts_nothing(command, tmp_path):
    (tmp_path / "a.sif").touch()
    words = shlex.split(command("container", "exec", "--dry-run", "a.sif", "echo", "a b").out)
    assert words[-3:] == [f"{tmp_path}/a.sif", "echo", "a b"]


def test_a_missing_image_is_an_error_with_a_remedy(command):
    result = command("container", "run", "nowhere.sif")
    assert result.code == 2
    assert "nowhere.sif: the image cannot be read: No such file or directory" in result.err
    assert "magicseg container build" in result.err


def test_with_verify_nothing_starts_without_a_valid_signature(command, tools, tmp_path):
    for name in ("a.sif", "key.pem"):
        (tmp_path / name).touch()
    assert command("container", "exec", "--verify", "key.pem", "a.sif", "true").code == 0
    tools(bad=True)
    result = command("container", "exec", "--verify", "key.pem", "a.sif", "true")
    assert (result.code, result.out) == (2, "")
    assert "is not an image that was signed with key.pem: signature not valid" in result.err
    result = command("container", "exec", "--verify", "other.pem", "a.sif", "true")
    assert result.code == 2
    assert "other.pem: there is no such key file" in result.err


def test_the_digest_is_cached_until_the_file_changes(tools, tmp_path):
    file = tmp_path / "a.sif"
    file.write_bytes(b"abc")
    assert identify(file).digest.startswith("sha256:ba7816bf8f01cfea")
    assert identify(file).digest.startswith("sha256:ba7816bf8f01cfea")
    file.write_bytes(b"abd")
    assert identify(file).digest.startswith("sha256:a52d159f262b2c6d")
    (tmp_path / "cache/magicseg/images.json").write_text("{damaged")
    assert identify(file).digest.startswith("sha256:a52d159f262b2c6d")


def test_an_image_that_does_not_start_gets_no_further_checks(tools, tmp_path):
    tools(code=255)
    (tmp_path / "a.sif").touch()
    (check,) = try_image(find_runtime(), tmp_path / "a.sif", (), lambda *_: None)
    assert check.status is Status.FAILED
    assert check.name == "starts"
    assert "exit code 255" in check.seen


# ------------------------------------------------------------ the script without magicseg


def test_the_build_script_gives_apptainer_the_same_words(tools, tmp_path):
    tools()
    (tmp_path / "my base.sif").touch()
    script = TOP / "containers/build.sh"
    done = subprocess.run(
        [script, "a.sif", "VARIANT=cpu", "BASE=my base.sif", "BOOTSTRAP=localimage", "COMMIT=abc"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    words = json.loads(done.stdout)["words"]
    assert words == [
        *("build", "--fakeroot", "--mksquashfs-args", "-comp zstd -Xcompression-level 3"),
        *("--build-arg", "VARIANT=cpu", "--build-arg", "BOOTSTRAP=localimage", "--build-arg", "COMMIT=abc"),
        *("--build-arg", f"BASE={tmp_path}/my base.sif", f"{tmp_path}/a.sif", "Apptainer.def"),
    ]


def test_the_build_script_builds_on_other_machines_by_ssh_and_srun(tmp_path, monkeypatch):
    """ssh, scp and srun are stand-ins that run on this machine."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in {
        "ssh": 'shift\nexec sh -c "$*"',
        "scp": 'exec cp "${1#there:}" "${2#there:}"',
        "srun": 'echo "srun $1 $2" >&2\nshift 2\nexec "$@"',
        "apptainer": 'for image; do [ "${image%.sif}" = "$image" ] || echo "$PWD $*" >"$image"; done',
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    script = TOP / "containers/build.sh"
    for how in (["--ssh", "there"], ["--srun", "-p build"]):
        image = tmp_path / f"{how[0].strip('-')}.sif"
        (tmp_path / "base.sif").touch()
        odd = "TORCH=https://index.site/a?b='c d'&e;touch never"
        words = [script, *how, image, "VARIANT=cpu", "BASE=base.sif", odd]
        subprocess.run(words, check=True, capture_output=True, cwd=tmp_path)
        assert "--build-arg VARIANT=cpu" in image.read_text()
        assert f"--build-arg {odd} " in image.read_text()
        assert f"BASE={tmp_path}/base.sif" in image.read_text() or how[0] == "--ssh"
    assert "/base.sif " in (tmp_path / "ssh.sif").read_text()
    assert not list(tmp_path.rglob("never"))
    assert not (tmp_path / "ssh.sif").read_text().startswith(f"{TOP} "), "built from what was sent"
    refused = subprocess.run([script, "a.sif", "cpu"], capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "cpu: is not NAME=VALUE" in refused.stderr
