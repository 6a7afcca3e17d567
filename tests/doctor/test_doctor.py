"""The doctor finds missing tools, broken libraries, full and read-only disks, and runs with other settings."""

import json
import os
import shutil
import sys

import pytest

from helpers.tiny_runs import change, do, make_run
from magicseg.core.checks import ask
from magicseg.doctor import Status, machine_checks, run_checks
from magicseg.run import Run

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A PATH that holds only the programs that a test adds: ``tools("sinfo", "echo gpu up")``."""
    folder = tmp_path / "tools"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def put(name, line):
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)

    return put


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """Add stub modules that hide the real modules: ``on_path("torch", "raise ImportError('broken')")``."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")  # a stub may be replaced within a second

    def put(name, text):
        (folder / f"{name}.py").write_text(text)

    return put


def found(run, name):
    return next(check for check in run_checks.run_checks(run) if check.name == name)


# --------------------------------------------------------------------------------------------------- this machine


def test_all_required_packages_are_checked(monkeypatch):
    assert "numpy" in machine_checks.packages().seen
    real = machine_checks.installed_version
    monkeypatch.setattr(machine_checks, "installed_version", lambda name: None if name == "torch" else real(name))
    assert machine_checks.packages().status is Status.NOTE
    assert "magicseg[models]" in machine_checks.packages().remedy
    assert machine_checks.torch_devices().status is Status.NOTE
    monkeypatch.setattr(machine_checks, "installed_version", lambda name: "0.1" if name == "zarr" else real(name))
    assert machine_checks.packages().status is Status.FAILED
    seen = machine_checks.packages().seen
    assert "missing: zarr" in seen
    assert ">=3.1.3" in seen


def test_a_torch_that_cannot_be_imported_is_found_without_importing_it(on_path):
    on_path("torch", "raise ImportError('libcudart.so.13: cannot open shared object file')")
    check = machine_checks.torch_devices()
    assert check.status is Status.FAILED
    assert "libcudart.so.13" in check.seen
    assert "pip install" in check.remedy


_GPU = """
__version__ = "9.9"
class version: cuda = "13.0"
class cuda:
    device_count = staticmethod(lambda: {count})
    mem_get_info = staticmethod(lambda number: (70_000_000_000, 80_000_000_000))
    get_device_name = staticmethod(lambda number: "Big GPU")
"""


def test_gpus_are_listed_with_memory_and_gpus_that_torch_misses_are_a_warning(on_path, tools):
    on_path("torch", _GPU.format(count=2))
    check = machine_checks.torch_devices()
    assert check.status is Status.OK
    assert check.seen.count("Big GPU, 70 GB of 80 GB free") == 2
    on_path("torch", _GPU.format(count=0))
    assert machine_checks.torch_devices().status is Status.NOTE, "a login node has none"
    tools("nvidia-smi", "echo 'GPU 0: Big GPU'")
    check = machine_checks.torch_devices()
    assert check.status is Status.WARNING
    assert "GPU 0: Big GPU" in check.seen


def test_a_machine_without_slurm_and_containers_passes(tools):
    assert machine_checks.slurm().status is Status.NOTE
    assert machine_checks.container().status is Status.NOTE


def test_slurm_s_version_partitions_and_accounting_are_checked(tools):
    for name in ("squeue", "scontrol", "scancel", "sacct"):
        tools(name, "exit 0")
    tools("sbatch", "echo Welcome to the cluster; echo slurm 24.05.1")
    tools("sinfo", "echo Welcome to the cluster; echo 'magicseg|gpu* up 1-00:00:00 12'")
    check = machine_checks.slurm()
    assert check.status is Status.OK
    assert check.seen == "slurm 24.05.1; partitions (name, state, time limit, nodes): gpu* up 1-00:00:00 12"
    tools("sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    check = machine_checks.slurm()
    assert check.status is Status.WARNING
    assert "accounting storage is disabled" in check.seen
    tools("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    check = machine_checks.slurm()
    assert check.status is Status.FAILED
    assert "Unable to contact" in check.seen


def test_an_incomplete_slurm_is_a_failure(tools):
    tools("sinfo", "exit 0")
    check = machine_checks.slurm()
    assert check.status is Status.FAILED
    assert "sbatch" in check.seen


def test_container_version_and_quota_come_from_their_commands(tools, tmp_path):
    tools("apptainer", "echo apptainer version 1.4.0")
    assert machine_checks.container().seen == "apptainer version 1.4.0"
    assert machine_checks.quota(tmp_path).status is Status.NOTE
    tools("quota", "echo '/dev/sda 5G 10G 11G'")
    assert machine_checks.quota(tmp_path).status is Status.OK
    tools("lfs", "echo '/scratch 11G* 10G 11G'; exit 1")
    check = machine_checks.quota(tmp_path)
    assert check.status is Status.WARNING
    assert "11G*" in check.seen


def test_a_hanging_program_is_stopped_after_a_timeout(tools):
    tools("slow", "exec /bin/sleep 60")
    assert ask(["slow"], 0.2) == (124, "slow did not answer within 0 s")
    assert ask(["nothing-of-this-name"])[0] == 126


def test_a_small_disk_and_a_read_only_disk_are_reported(small_disk, monkeypatch):
    assert machine_checks.disk(small_disk).status is Status.WARNING
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(small_disk / "deep" / "hub"))
    check = machine_checks.hub()
    assert check.status is Status.WARNING
    assert "export HF_HOME" in check.remedy
    assert not (small_disk / "deep").exists(), "nothing is made"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert machine_checks.disk(small_disk).status is Status.FAILED
    assert "you cannot write there" in machine_checks.hub().seen


def test_a_token_is_not_shown(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    check = machine_checks.hub()
    assert "a token is set" in check.seen
    assert "hf_secret" not in check.seen


# ---------------------------------------------------------------------------------------------------------- a run


def test_a_finished_run_passes_all_checks(finished):
    checks = {check.name: check for check in run_checks.run_checks(finished)}
    assert {check.status for check in checks.values()} <= {Status.OK, Status.NOTE}
    assert checks["mask: work"].seen == "6 of 6 shards are committed"
    assert checks["room for the rest"].status is Status.OK
    assert checks["profile"].status is Status.NOTE


def test_work_of_other_settings_is_found_with_a_remedy(finished):
    change(finished, "generate.size", 48)
    check = found(Run.open(finished.path), "generate: work")
    assert check.status is Status.FAILED
    assert "generate.size is 48, was 32" in check.seen
    assert "magicseg reset generate" in check.remedy


def test_weights_that_are_not_fetched_are_a_failure_while_they_are_needed(tmp_path):
    run = make_run(
        tmp_path / "run", "generate.backend=diffusers", f"generate.options={{model: org/model, revision: '{COMMIT}'}}"
    )
    (check,) = run_checks.weights(run, "generate", needed=True)
    assert check.status is Status.FAILED
    assert check.remedy == f"magicseg fetch {run.path}"
    (done,) = run_checks.weights(run, "generate", needed=False)
    assert done.status is Status.NOTE
    assert list(run_checks.weights(run, "describe", needed=True)) == []


def test_a_back_end_is_checked_with_its_libraries(tmp_path, on_path):
    run = make_run(
        tmp_path / "run", "describe.backend=openai", "describe.options={base_url: 'http://127.0.0.1:9/v1', model: m}"
    )
    assert found(run, "describe: back end").status is Status.OK
    on_path("openai", "raise ImportError('broken')")
    check = found(run, "describe: back end")
    assert check.status is Status.FAILED
    assert "broken" in check.seen
    change(run, "describe.options", {"modle": "m"})
    check = found(Run.open(run.path), "describe: back end")
    assert check.status is Status.FAILED
    assert "describe.options does not fit" in check.seen
    change(run, "describe.backend", "nobody")
    assert "no back end 'nobody'" in found(Run.open(run.path), "describe: back end").seen


def test_a_library_that_is_not_installed_may_be_in_the_image(tmp_path, monkeypatch):
    run = make_run(
        tmp_path / "run", "describe.backend=openai", "describe.options={base_url: 'http://127.0.0.1:9/v1', model: m}"
    )
    monkeypatch.setattr(run_checks, "find_spec", lambda name: None)
    check = found(run, "describe: back end")
    assert check.status is Status.WARNING
    assert "not installed here: openai" in check.seen


def test_a_submodule_of_a_missing_package_counts_as_not_installed(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run")
    for module in ("no_such_package.part", "json.part.deeper"):
        monkeypatch.setattr(run_checks, "libraries_of", lambda *_, module=module: (module,))
        check = run_checks.backend(run, "describe")
        assert check.status is Status.WARNING
        assert f"not installed here: {module}" in check.seen
        assert check.remedy.endswith("pip install 'magicseg[models]'")


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("groundingdino", "pip install --force-reinstall groundingdino-py"),
        ("PIL.Image", "pip install --force-reinstall pillow"),
        ("of_no_distribution", "pip install 'magicseg[models]'"),
    ],
)
def test_the_remedy_names_the_distribution_and_not_the_module(tmp_path, monkeypatch, module, remedy):
    run = make_run(tmp_path / "run")
    monkeypatch.setattr(run_checks, "libraries_of", lambda *_: (module,))
    monkeypatch.setattr(run_checks, "find_spec", lambda name: object())
    monkeypatch.setattr(run_checks, "ask", lambda *_: (1, "broken"))
    check = run_checks.backend(run, "describe")
    assert check.status is Status.FAILED
    assert check.remedy == remedy


def test_needed_space_is_extrapolated_from_committed_shards(fresh, monkeypatch):
    assert found(fresh, "room for the rest").status is Status.NOTE
    do(fresh)
    fresh.ledger("mask").take_back([0, 1, 2])
    fresh.ledger("generate").take_back([0, 1, 2])
    check = found(fresh, "room for the rest")
    assert check.status is Status.OK
    assert int(check.seen.split(" and ")[1].split(" files")[0]) > 0

    class Full:
        f_bavail, f_frsize, f_files, f_favail = 1, 4096, 100, 100

    monkeypatch.setattr(run_checks.os, "statvfs", lambda path: Full)
    assert found(fresh, "room for the rest").status is Status.FAILED


# nvidia-smi is a script that prints what the real one prints.
_SMI = """case "$1" in
  -L) echo 'GPU 0: Small GPU (UUID: GPU-a)'; echo 'GPU 1: Small GPU (UUID: GPU-b)' ;;
  *) echo '0, GPU-a, {mebibytes}'; echo '1, GPU-b, {mebibytes}' ;;
esac"""


def test_the_workers_of_each_stage_are_shown_and_weights_larger_than_a_gpu_are_a_warning(
    tmp_path, tools, monkeypatch
):
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.pt").write_bytes(bytes(2 << 20))
    run = make_run(
        tmp_path / "run",
        "mask.backend=detect-segment",
        "mask.options={detector: {backend: clip, options: {model: 'shipped:clip', against: [nothing]}},"
        f" segmenter: {{backend: transformers, options: {{model: {weights}, device: cuda}}}}}}",
    )
    assert found(run, "generate: workers").seen.endswith("(CPU)")
    check = found(run, "mask: workers")
    assert (check.status, check.seen) == (Status.NOTE, "1 worker, no GPU was found")
    tools("nvidia-smi", _SMI.format(mebibytes=81920))
    check = found(run, "mask: workers")
    assert check.status is Status.OK
    assert "2 workers on GPUs 0-1; their weights take" in check.seen
    assert "on each, GPU 0 has 85.9 GB" in check.seen
    tools("nvidia-smi", _SMI.format(mebibytes=1))
    check = found(run, "mask: workers")
    assert check.status is Status.WARNING
    assert "choose larger GPUs" in check.remedy


def test_an_invalid_profile_is_found(tmp_path):
    profile = tmp_path / "site.yaml"
    profile.write_text("partion: gpu\n")
    run = make_run(tmp_path / "run", f"slurm.profile={profile}")
    check = found(run, "profile")
    assert check.status is Status.FAILED
    assert "partion is not a key" in check.seen


def test_a_damaged_plan_does_not_hide_other_findings(finished):
    shutil.rmtree(finished.path / "plan")
    names = {check.name: check.status for check in run_checks.run_checks(Run.open(finished.path))}
    assert names["settings"] is Status.FAILED
    assert names["generate: back end"] is Status.OK


# ---------------------------------------------------------------------------------------------------- the command


def test_the_command_prints_json_and_exits_with_1_if_a_check_failed(magicseg, finished, tmp_path, on_path):
    on_path("torch", _GPU.format(count=1))
    paths = os.pathsep.join([os.environ["PYTHONPATH"], magicseg.environment["PYTHONPATH"]])
    environment = magicseg.environment | {"PATH": str(tmp_path / "empty"), "PYTHONPATH": paths}
    command = type(magicseg)(magicseg.folder, environment)
    done = command("doctor", finished.path, "--json")
    assert done.code == 0, done.out
    told = json.loads(done.out)
    assert told["run"] == str(finished.path)
    assert {check["status"] for check in told["checks"]} <= {"ok", "note", "warning"}
    change(finished, "generate.size", 48)
    done = command("doctor", finished.path)
    assert done.code == 1
    assert f"magicseg reset generate {finished.path}" in done.out
    assert "checks failed" in done.out
    gone = command("doctor", tmp_path / "nowhere", "--json")
    assert gone.code == 1
    (run,) = (check for check in json.loads(gone.out)["checks"] if check["name"] == "run")
    assert "is not a run" in run["seen"]


def test_the_command_itself_imports_no_torch(finished, tools, on_path):
    on_path("torch", _GPU.format(count=1))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from magicseg.doctor import examine\n"
        "examine(Path(sys.argv[1]))\n"
        "print(sorted({'torch', 'transformers', 'diffusers', 'zarr'} & set(sys.modules)))"
    )
    assert ask([sys.executable, "-c", code, str(finished.path)], 120) == (0, "[]")
