"""A run's image is recorded, and other images are refused at submission and in jobs, unless --new-image is given."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import magicseg as package
from helpers.stand_ins import queued
from magicseg.container.image import VERSION_LABEL, identify
from magicseg.core.errors import ConfigError, ContainerError, PlanMismatch, RunError
from magicseg.launch.job_image import container_lines
from magicseg.launch.job_script import interpreter
from magicseg.launch.jobs import submissions
from magicseg.launch.planning import Request
from magicseg.launch.profile_files import load_profile
from magicseg.launch.slurm import SlurmError
from magicseg.launch.submit import dry_run, submit
from magicseg.run.container_image import IMAGE_NAME, recorded_image

RUNTIME = """#!/bin/sh
PATH=/usr/bin:/bin
case "$1" in
  --version) echo "apptainer version 1.4.5" ;;
  inspect) echo '{{"data": {{"attributes": {{"labels": {{"{label}": "{version}"}}}}}}}}' ;;
  verify)
    echo "$@" >>'{log}'
    [ "$(cat "$4")" = "signed" ] || {{ echo "FATAL: signature not valid" >&2; exit 255; }} ;;
esac
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A profile with an image, another image, and a stand-in for Apptainer with configurable answers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("magicseg.launch.job_image.identify", identify)
    (tmp_path / "first.sif").write_text("signed")
    (tmp_path / "second.sif").write_text("another")
    (tmp_path / "key.pem").touch()
    program = tmp_path / "bin" / "apptainer"
    program.parent.mkdir()

    def make(image="first.sif", *, version=package.__version__, **keys):
        program.write_text(RUNTIME.format(label=VERSION_LABEL, version=version, log=tmp_path / "verified"))
        program.chmod(0o755)
        settings = {"image": str(tmp_path / image), "executable": str(program), **keys}
        file = tmp_path / "site.yaml"
        file.write_text(json.dumps({"cpus": 1, "memory": "1G", "container": settings}))
        return str(file)

    return make


def ask(profile, **more):
    return Request(stage="describe", profile=profile, shards_per_task=6, **more)


def test_the_first_submission_fixes_the_run_s_image(fresh, site, slurm, tmp_path):
    assert recorded_image(fresh.path) is None
    submit(fresh, ask(site()))
    assert recorded_image(fresh.path) == (identify(tmp_path / "first.sif").digest, str(tmp_path / "first.sif"))
    script = next(submissions(fresh)[0].folder.glob("*_submission.sh")).read_text()
    assert f"export APPTAINERENV_MAGICSEG_IMAGE={identify(tmp_path / 'first.sif').digest}" in script


def test_another_image_is_refused_without_new_image(fresh, site, slurm, tmp_path):
    submit(fresh, ask(site()))
    before = len(slurm.calls("sbatch"))
    with pytest.raises(PlanMismatch, match=r"is done in the image sha256:\w+ \(.*first\.sif\)") as caught:
        submit(fresh, ask(site("second.sif"), force=True))
    assert "--new-image" in caught.value.hint
    assert len(slurm.calls("sbatch")) == before
    submit(fresh, ask(site("second.sif"), force=True, new_image=True))
    assert recorded_image(fresh.path)[1] == str(tmp_path / "second.sif")
    with pytest.raises(PlanMismatch):
        submit(fresh, ask(site(), force=True))


def test_a_copy_of_the_image_at_another_path_is_the_same_image(fresh, site, slurm, tmp_path):
    submit(fresh, ask(site()))
    (tmp_path / "copy.sif").write_text("signed")
    submit(fresh, ask(site("copy.sif"), force=True))
    assert recorded_image(fresh.path)[1] == str(tmp_path / "copy.sif")


def test_an_image_of_another_version_is_refused_before_anything_is_queued(fresh, site, slurm):
    with pytest.raises(ContainerError, match=rf"has magicseg 9\.9, but this machine has {package.__version__}"):
        submit(fresh, ask(site(version="9.9")))
    assert slurm.calls("sbatch") == []
    assert recorded_image(fresh.path) is None


def test_a_missing_image_is_refused_before_anything_is_queued(fresh, site, slurm):
    with pytest.raises(ContainerError, match=r"third\.sif: the image cannot be read"):
        submit(fresh, ask(site("third.sif")))
    with pytest.raises(ContainerError, match=r"third\.sif: the image cannot be read"):
        dry_run(fresh, ask(site("third.sif")))
    assert slurm.calls("sbatch") == []


def test_without_a_container_runtime_on_the_login_node_only_the_jobs_check_the_image(fresh, site, slurm):
    profile = site(executable="apptainer")  # installed only on the nodes
    submit(fresh, ask(profile))
    assert len(slurm.calls("sbatch")) == 1


def test_a_changed_image_fails_its_signature_check(fresh, site, slurm, tmp_path):
    key = str(tmp_path / "key.pem")
    submit(fresh, ask(site(verify=key)))
    assert f"verify --key {key} {tmp_path}/first.sif" in (tmp_path / "verified").read_text()
    with pytest.raises(ContainerError, match=r"is not an image that was signed with .*key\.pem: signature not valid"):
        submit(fresh, ask(site("second.sif", verify=key), new_image=True))
    with pytest.raises(ContainerError, match="no such key file"):
        submit(fresh, ask(site(verify=str(tmp_path / "lost.pem"))))


def test_a_refused_first_submission_records_no_image(fresh, site, slurm):
    slurm.fails("sbatch", "sbatch: error: Batch job submission failed: invalid partition")
    with pytest.raises(SlurmError):
        submit(fresh, ask(site()))
    assert recorded_image(fresh.path) is None
    slurm.heals("sbatch")
    submit(fresh, ask(site()))
    slurm.fails("sbatch", "sbatch: error: Batch job submission failed: invalid partition")
    with pytest.raises(SlurmError):
        submit(fresh, ask(site("second.sif"), new_image=True, force=True))
    assert recorded_image(fresh.path)[1].endswith("first.sif")


def test_a_new_image_is_refused_while_tasks_of_the_old_image_are_queued(fresh, site, slurm):
    submit(fresh, ask(site()))
    (array,) = submissions(fresh)[0].arrays
    slurm.says("squeue", queued(array, "N/A", "RUNNING"))
    with pytest.raises(PlanMismatch, match="1 queued tasks use the run's present image") as caught:
        submit(fresh, ask(site("second.sif"), new_image=True))
    assert "magicseg cancel" in caught.value.hint
    assert recorded_image(fresh.path)[1].endswith("first.sif")


def test_a_job_unsets_the_host_s_pythonpath_but_not_the_profile_s(site, tmp_path):
    own = Path(site())
    lines = [*container_lines(load_profile(str(own))), 'echo "${PYTHONPATH-none}"']
    shown = {"PYTHONPATH": "/host", "PATH": os.environ["PATH"]}
    assert subprocess.check_output(["bash", "-c", "\n".join(lines)], env=shown, text=True) == "none\n"
    own.write_text(json.dumps(json.loads(own.read_text()) | {"environment": {"PYTHONPATH": "/plugins"}}))
    lines = [*container_lines(load_profile(str(own))), 'echo "${PYTHONPATH-none}"']
    assert subprocess.check_output(["bash", "-c", "\n".join(lines)], env=shown, text=True) == "/host\n"


def test_a_job_distinguishes_an_unreadable_image_from_a_missing_runtime(site, tmp_path):
    lines = "\n".join(container_lines(load_profile(site(verify=str(tmp_path / "key.pem")))))
    (tmp_path / "bin" / "apptainer").unlink()
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=False)
    assert (done.returncode, "apptainer: is not on this node's PATH" in done.stdout) == (2, True)
    (tmp_path / "first.sif").unlink()
    done = subprocess.run(["bash", "-c", lines], capture_output=True, text=True, check=False)
    assert (done.returncode, "first.sif: cannot be read on this node" in done.stdout) == (2, True)


@pytest.mark.parametrize("cache", ["relative", "$SCRATCH/caches", "/a:/b", "/a,b"])
def test_a_cache_must_be_one_absolute_folder(site, cache):
    with pytest.raises(ConfigError, match=r"container\.cache: .*(absolute path|SOURCE:TARGET)"):
        load_profile(site(cache=cache))


def test_amd_gpus_get_their_own_flag(fresh, site):
    profile = load_profile(site(rocm=True), ["slurm.gpus=1"])
    assert interpreter(profile, "generate", fresh.path)[1:3] == ["exec", "--rocm"]


def job(profile):
    """Run the first lines of a job script in a real shell."""
    script = "\n".join(["set -u", *container_lines(load_profile(profile)), 'env | grep "^APPTAINERENV_" | sort'])
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)


def test_a_job_sets_digest_and_caches_inside_the_container_only(site, tmp_path):
    done = job(site(cache=str(tmp_path / "big-caches")))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"APPTAINERENV_HF_HOME={tmp_path}/big-caches/huggingface",
        f"APPTAINERENV_MAGICSEG_IMAGE={identify(tmp_path / 'first.sif').digest}",
        "APPTAINERENV_PYTHONSAFEPATH=1",
        f"APPTAINERENV_TORCH_HOME={tmp_path}/big-caches/torch",
        f"APPTAINERENV_TRITON_CACHE_DIR={tmp_path}/big-caches/triton",
        f"APPTAINERENV_XDG_CACHE_HOME={tmp_path}/big-caches",
    ]
    assert (tmp_path / "big-caches").is_dir()


def test_singularity_has_its_own_prefix(site, tmp_path):
    program = tmp_path / "singularity-ce"
    profile = load_profile(site(executable=str(program)))
    assert any(line.startswith("export SINGULARITYENV_MAGICSEG_IMAGE=") for line in container_lines(profile))


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_job_refuses_an_image_that_was_replaced_since_it_was_submitted(site, tmp_path, keep_time):
    image, lines = tmp_path / "first.sif", container_lines(load_profile(site()))
    state = image.stat()
    image.write_text("replaced" if keep_time else "Signed")
    if keep_time:
        os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns))
    else:
        os.utime(image, (1, 1))
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "first.sif: is not the image of this submission" in done.stdout


def test_a_job_accepts_an_image_whose_modification_time_changed(site, tmp_path):
    lines = container_lines(load_profile(site()))
    os.utime(tmp_path / "first.sif", (1, 1))
    assert subprocess.run(["bash", "-c", "\n".join(lines)], check=False).returncode == 0


def test_a_job_verifies_the_signature_again(site, tmp_path):
    profile = site(verify=str(tmp_path / "key.pem"))
    assert job(profile).returncode == 0
    (tmp_path / "first.sif").write_text("tampered with")
    done = job(profile)
    assert done.returncode == 2
    assert "is not signed with" in done.stdout


def test_a_task_in_another_image_than_the_run_s_refuses_to_work(fresh, site, slurm, magicseg):
    submit(fresh, ask(site()))
    code = "import sys; from magicseg.launch.limits import main; main(*sys.argv[1:])"

    def fits(digest, version=package.__version__):
        return subprocess.run(
            [sys.executable, "-c", code, str(fresh.path), version],
            env=magicseg.environment | {"MAGICSEG_IMAGE": digest},
            capture_output=True,
            text=True,
            check=False,
        )

    assert fits(recorded_image(fresh.path)[0]).returncode == 0
    assert fits("").returncode == 0, "outside of any image"
    other = fits("sha256:" + "0" * 64)
    assert other.returncode == 2
    assert "but this is sha256:000000000000" in other.stdout
    assert "magicseg submit" in other.stdout
    assert "but this node or image has" in fits("", "9.9").stdout


@pytest.mark.slow
def test_commit_records_name_the_image_and_status_warns_about_mixed_images(fresh, magicseg):
    for digest, shards in (("sha256:" + "1" * 64, "0-2"), ("sha256:" + "2" * 64, "3-5")):
        magicseg.environment["MAGICSEG_IMAGE"] = digest
        assert magicseg("describe", fresh.path, "--shards", shards, "--workers", "1").code == 0
    commits = fresh.ledger("describe").commits()
    assert {commits[0].versions["image"][7], commits[5].versions["image"][7]} == {"1", "2"}
    (warning,) = json.loads(magicseg("status", fresh.path, "--json").out)["warnings"]
    assert warning == "describe: made with 2 different sets of library versions or machines: image differ"


def test_a_damaged_record_of_the_image_is_an_error_with_a_hint(fresh):
    (fresh.path / IMAGE_NAME).write_text("[]")
    with pytest.raises(RunError, match="cannot be used") as caught:
        recorded_image(fresh.path)
    assert caught.value.hint.startswith("rm ")
