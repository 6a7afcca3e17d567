"""The image, built from Apptainer.def by a real Apptainer, and builds that must fail with a clear message."""

import json
import os
import pwd
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import magicseg as package
from helpers.ordinary_user import NOBODY, python_for_everybody, readable_libraries
from helpers.real_images import TOP, apptainer, build
from helpers.registries import mirrored, push, registry
from magicseg.container import trial
from magicseg.container.image import identify
from magicseg.container.runtime import find_runtime, start_flags
from magicseg.core.checks import Status


def test_an_ordinary_user_passes_every_check_of_the_image(image, workshop):
    home = workshop / "home"
    home.mkdir()
    shutil.chown(home, "nobody", "nogroup")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, readable_libraries(workshop))),
        "HOME": str(home),
        "TMPDIR": str(home),
    }
    command = [*NOBODY, python_for_everybody(), "-m", "magicseg", "container", "test", str(image), "--json"]
    done = subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, check=False)
    report = json.loads(done.stdout)
    assert [row for row in report["checks"] if row["status"] == "failed"] == [], done.stdout
    assert done.returncode == 0
    assert report["failed"] == 0
    assert report["digest"] == identify(image).digest
    seen = {row["name"]: row["seen"] for row in report["checks"]}
    assert seen["miniature, offline"].endswith("no network")
    assert "--userns" not in seen["starts"]
    assert seen["files left"].endswith(f"all of user {pwd.getpwnam('nobody').pw_uid}")
    assert seen["exit codes"] == "0, 1 and 75 come out"
    assert "SIGTERM and SIGUSR2" in seen["signals"]
    assert seen["torchrun, two processes"] == "one training of both"


def test_inspect_prints_the_image_s_labels_and_versions(magicseg, image):
    found = json.loads(magicseg.patiently("container", "inspect", image, "--json").out)
    labels = found["labels"]
    assert found["digest"] == identify(image).digest
    assert labels["org.opencontainers.image.version"] == package.__version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.created"].startswith("20")
    assert "org.opencontainers.image.revision" in labels
    assert labels["magicseg.variant"] == "cpu"
    pinned = dict(line.split("==") for line in (TOP / "constraints.txt").read_text().splitlines() if "==" in line)
    assert found["versions"]["torch"].partition("+")[0] == pinned["torch"]
    assert labels["magicseg.torch"].startswith(pinned["torch"])
    assert "apptainer test IMAGE" in apptainer("inspect", "--helpfile", image).stdout
    assert apptainer("inspect", "--list-apps", image).stdout.split() == ["shell", "train"]


def test_the_image_has_no_cache_source_or_wheel_in_it(image):
    look = "ls -d /root/.cache /src /wheels /tmp/pip* 2>/dev/null; test -s /magicseg/packages.txt"
    done = apptainer("exec", "--userns", "--contain", image, "sh", "-c", look)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_host_s_python_packages_do_not_leak_in(image, tmp_path):
    site = tmp_path / ".local/lib/python3.11/site-packages"
    site.mkdir(parents=True)
    (site / "zarr.py").write_text("raise SystemExit('the home folder leaks in')")
    done = apptainer(
        "exec", "--userns", "--home", tmp_path, image, "python3", "-c", "import zarr; print(zarr.__file__)"
    )
    assert done.stdout.startswith("/magicseg/"), done.stderr


def test_the_host_s_python_path_does_not_leak_in(magicseg, image, tmp_path):
    """The host's folder of temporary files is visible inside, so its packages could be imported."""
    libraries = tmp_path / "libraries"  # not the current folder, from which Python imports by default
    libraries.mkdir()
    (libraries / "zarr.py").write_text("raise SystemExit('the path leaks in')")
    magicseg.environment["PYTHONPATH"] += f":{libraries}"
    shown = magicseg("container", "exec", image, "python3", "-c", "import zarr, magicseg; print(magicseg.__file__)")
    assert shown.out.startswith("/magicseg/"), shown.err


def test_commands_run_in_the_image_with_their_own_exit_codes(magicseg, image):
    assert magicseg("container", "exec", image, "sh", "-c", "exit 42").code == 42
    assert "describe" in magicseg("container", "run", image, "--help").out
    missing = magicseg("container", "run", image, "status", "nowhere")
    assert missing.code == 2
    assert "nowhere: is not a run" in missing.err


def test_an_image_of_another_version_fails_its_test(image, tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "package_version", lambda: "9.9")
    runtime = find_runtime()
    check = trial.versions(trial.Trial(runtime, image, tuple(start_flags(runtime)), tmp_path))
    assert check.status is Status.FAILED
    assert "but this machine has magicseg 9.9" in check.seen


# ------------------------------------------------------------ builds that must fail


@pytest.fixture
def small(tmp_path, base):
    """A definition that builds within seconds."""

    def write(*lines):
        (tmp_path / "source").mkdir()
        (tmp_path / "source/Apptainer.def").write_text(
            "\n".join(["Bootstrap: localimage", f"From: {base.sif}", *lines, ""])
        )
        return tmp_path / "source"

    return write


def test_a_test_that_fails_leaves_no_image(magicseg, small, base, tmp_path):
    # The definition has to use the arguments that magicseg passes.
    used = "    : {{ VARIANT }} {{ COMMIT }}"
    source = small("%arguments", "    VARIANT=cpu", "    COMMIT=x", "%post", used, "%test", "    exit 3")
    result = magicseg("container", "build", "a.sif", "--source", source, "--variant", "cpu")
    assert result.code == 2
    assert "failed to execute %test script: exit status 3" in result.err
    assert "there is no new image" in result.err
    assert not (tmp_path / "a.sif").exists()


def test_an_unknown_build_argument_is_refused_at_once(tmp_path):
    done = build(tmp_path / "a.sif", "--build-arg", "COLOUR=red")
    assert done.returncode != 0
    assert "unused build args: COLOUR" in done.stderr


def test_an_unknown_variant_is_refused_before_anything_is_installed(base, tmp_path):
    arguments = ("BOOTSTRAP=localimage", f"BASE={base.sif}", "VARIANT=tpu")
    done = build(tmp_path / "a.sif", *(word for each in arguments for word in ("--build-arg", each)))
    assert done.returncode != 0
    assert "VARIANT=tpu: there is cuda, rocm and cpu" in done.stderr
    assert "Collecting" not in done.stderr


def test_a_folder_without_the_pinned_torch_is_refused(base, tmp_path):
    (tmp_path / "wheels").mkdir()
    arguments = ("BOOTSTRAP=localimage", f"BASE={base.sif}", "VARIANT=cpu", "TORCH=/mnt")
    words = [word for each in arguments for word in ("--build-arg", each)]
    done = build(tmp_path / "a.sif", "--bind", f"{tmp_path}/wheels:/mnt", *words)
    assert done.returncode != 0
    assert "/mnt: the pinned torch and torchvision are not there" in done.stderr


def test_without_subordinate_ids_nothing_is_built_and_the_remedy_is_named(magicseg, small, base):
    """In a namespace where /etc/subuid is empty."""
    source = small()
    words = ["container", "build", "a.sif", "--source", str(source), "--base", str(base.sif)]
    code = f"import sys; sys.argv[1:] = {words!r}; from magicseg.cli import main; main()"
    hide = 'mount --bind /dev/null /etc/subuid && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", hide, "_", sys.executable, "-c", code],
        env=magicseg.environment,
        cwd=magicseg.folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no ids in /etc/subuid and /etc/subgid" in done.stderr
    assert "usermod --add-subuids" in done.stderr


def test_with_verify_a_tampered_image_is_not_started(magicseg, base, tmp_path):
    image, private, public = tmp_path / "signed.sif", tmp_path / "private.pem", tmp_path / "public.pem"
    subprocess.run(["cp", base.sif, image], check=True)
    key = ["openssl", "genpkey", "-algorithm", "ed25519", "-out", private]
    subprocess.run(key, check=True, capture_output=True)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    checked = ("container", "exec", "--verify", public, image, "echo", "it runs")
    unsigned = magicseg(*checked)
    assert unsigned.code == 2
    assert "signature" in unsigned.err
    assert apptainer("sign", "--key", private, image).returncode == 0
    assert magicseg(*checked).out == "it runs\n"
    with image.open("r+b") as file:
        file.seek(image.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    tampered = magicseg(*checked)
    assert (tampered.code, tampered.out) == (2, "")
    assert "is not an image that was signed with" in tampered.err


# ------------------------------------------------------------ the definition's defaults


def test_a_build_with_defaults_uses_a_registry_image(base, workshop):
    """Only the digest is changed, because the stand-in base in the registry has another digest than the real base.

    The build ends before pip starts. To build the whole image, which takes six minutes more:
    MAGICSEG_ALL_IMAGES=1 pytest tests/container/test_real_image.py -k defaults
    """
    whole = bool(os.environ.get("MAGICSEG_ALL_IMAGES"))
    with registry(workshop / "registry") as address:
        before = mirrored(workshop, address)
        pinned = build(workshop / "never.sif", before=before)
        assert pinned.returncode != 0, "the registry has no image of the pinned digest, and no other will do"
        assert "MANIFEST_UNKNOWN" in pinned.stderr
        digest = push(address, "library/python", base.root)
        binds = [word for bind in base.binds for word in ("--bind", bind)]
        reference = f"BASE=docker.io/library/python@{digest}"
        folder = Path(workshop / "defaults")  # unpacked, because packing takes time
        more = () if whole else ("--build-arg", "TORCH=/mnt")  # a folder without torch: the end, right before pip
        done = build(folder, "--sandbox", *binds, "--build-arg", reference, *more, before=before)
    if not whole:
        assert "/mnt: the pinned torch and torchvision are not there" in done.stderr
        assert not folder.exists()
        return
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Running testscript" in done.stderr
    labels = json.loads(apptainer("inspect", "--json", "--labels", folder).stdout)["data"]["attributes"]["labels"]
    assert labels["magicseg.variant"] == "cuda"
    assert labels["org.label-schema.usage.singularity.deffile.from"] == reference.partition("=")[2]
    assert "rdma-core" in (folder / "magicseg/packages.txt").read_text()
    subprocess.run(["rm", "-rf", folder], check=True)
