"""The GPUs that a process may use: inherited lists, nvidia-smi and AMD's kernel files.

No GPU is needed. ``nvidia-smi`` is a script that prints what the real one prints: a fault injection.
"""

import os
import subprocess
import sys

import pytest

from magicseg.core import gpus
from magicseg.core.errors import ConfigError
from magicseg.core.gpus import Gpu, memory_of, shown_gpus, visible_gpus

PARTS = """GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-aaaa-1)
  MIG 3g.20gb     Device  0: (UUID: MIG-1111-2222)
  MIG 1g.5gb+me   Device  1: (UUID: MIG-3333-4444)
GPU 1: NVIDIA A100-SXM4-40GB (UUID: GPU-bbbb-2)
"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Return a function that installs a stand-in for nvidia-smi: the text for -L, and the text for a query."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin:/bin")
    monkeypatch.setattr(gpus, "_KFD", tmp_path / "no-kfd")
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)

    def install(listing, query="", code=0):
        (folder / "listing").write_text(listing)
        (folder / "query").write_text(query)
        script = folder / "nvidia-smi"
        script.write_text(
            f'#!/bin/sh\nif [ "$1" = -L ]; then cat {folder}/listing; else cat {folder}/query; fi\nexit {code}\n'
        )
        script.chmod(0o755)

    return install


def cards(count):
    return "".join(f"GPU {number}: NVIDIA H100 (UUID: GPU-{number:04d}-abc)\n" for number in range(count))


def names(environment):
    return [gpu.name for gpu in visible_gpus(environment).gpus]


@pytest.mark.parametrize("count", [1, 2, 8])
def test_without_an_inherited_list_nvidia_smi_lists_the_gpus(smi, count):
    smi(cards(count))
    found = visible_gpus()
    assert [gpu.name for gpu in found.gpus] == [str(number) for number in range(count)]
    assert found.limit is None
    assert found.gpus[-1].environment == {
        "CUDA_VISIBLE_DEVICES": str(count - 1),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # nvidia-smi's order
    }


def test_a_user_s_order_of_devices_stays(smi):
    smi(cards(1))
    (gpu,) = visible_gpus({"CUDA_DEVICE_ORDER": "FASTEST_FIRST"}).gpus
    assert gpu.environment == {"CUDA_VISIBLE_DEVICES": "0"}


def test_mig_instances_take_the_place_of_their_gpu(smi):
    smi(PARTS, "0, GPU-aaaa-1, 40960\n1, GPU-bbbb-2, 40960\n")
    found = visible_gpus().gpus
    assert [gpu.name for gpu in found] == ["MIG-1111-2222", "MIG-3333-4444", "1"]
    assert found[0].environment == {"CUDA_VISIBLE_DEVICES": "MIG-1111-2222"}
    assert memory_of(found) == {"MIG-1111-2222": 20 * 10**9, "MIG-3333-4444": 5 * 10**9, "1": 40960 << 20}


def test_no_driver_or_a_broken_driver_means_no_gpu(smi):
    assert visible_gpus().gpus == ()
    smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", code=9)
    assert visible_gpus().gpus == ()
    assert memory_of([Gpu("0", {"CUDA_VISIBLE_DEVICES": "0"})]) == {}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", ["0"]),
        (" 2, 5 ", ["2", "5"]),
        ("GPU-aaaa-1,GPU-b", ["GPU-aaaa-1", "GPU-b"]),
        ("MIG-GPU-aaaa-1/1/0", ["MIG-GPU-aaaa-1/1/0"]),
        ("0,1,-1,2", ["0", "1"]),
        ("1,1", []),
        ("-1", []),
        ("", []),
        ("NoDevFiles", []),
    ],
)
def test_an_inherited_list_is_read_as_cuda_reads_it(smi, value, expected):
    smi(cards(8))
    assert names({"CUDA_VISIBLE_DEVICES": value}) == expected


def test_the_lists_of_rocm_are_subdivided_too():
    (_, second) = visible_gpus({"HIP_VISIBLE_DEVICES": "4,6"}).gpus
    assert second.environment == {"HIP_VISIBLE_DEVICES": "6"}
    (_, second) = visible_gpus({"ROCR_VISIBLE_DEVICES": "4,6"}).gpus
    assert second.environment == {"ROCR_VISIBLE_DEVICES": "6"}
    (_, second) = visible_gpus({"CUDA_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "0,1"}).gpus
    assert second.environment == {"CUDA_VISIBLE_DEVICES": "1", "HIP_VISIBLE_DEVICES": "1"}
    # Slurm may set all of them. The numbers of the others count within ROCR_VISIBLE_DEVICES.
    (_, second) = visible_gpus({"CUDA_VISIBLE_DEVICES": "0,1", "ROCR_VISIBLE_DEVICES": "2,3"}).gpus
    assert second.environment == {"CUDA_VISIBLE_DEVICES": "1"}


def test_amd_gpus_are_listed_from_the_kernel_s_files(smi, tmp_path, monkeypatch):
    for node, simd in enumerate((0, 304, 304)):  # the first is the CPU
        bank = tmp_path / "kfd" / str(node) / "mem_banks" / "0"
        bank.mkdir(parents=True)
        (bank / "properties").write_text(f"heap_type 1\nsize_in_bytes {node * 64 * 10**9}\n")
        (tmp_path / "kfd" / str(node) / "properties").write_text(f"cpu_cores_count 0\nsimd_count {simd}\n")
    monkeypatch.setattr(gpus, "_KFD", tmp_path / "kfd")
    found = visible_gpus().gpus
    assert [gpu.environment for gpu in found] == [{"HIP_VISIBLE_DEVICES": "0"}, {"HIP_VISIBLE_DEVICES": "1"}]
    assert memory_of(found) == {"0": 64 * 10**9, "1": 128 * 10**9}


def test_gpus_are_chosen_by_index_or_uuid(smi):
    smi(cards(4))
    found = visible_gpus()
    assert [gpu.name for gpu in found.chosen("3,0")] == ["3", "0"]
    assert [gpu.name for gpu in found.chosen("GPU-0002-abc, GPU-0001")] == ["2", "1"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0,x", "'x' is neither the index nor the UUID of a GPU"),
        ("", "'' is neither"),
        ("0,7", "this machine has no GPU 7"),
        ("0,GPU-0000-abc", "names GPU 0 twice"),
        ("GPU-000", "several GPUs are called GPU-000..."),
    ],
)
def test_wrong_choices_are_refused(smi, text, words):
    smi(cards(4))
    with pytest.raises(ConfigError, match=words):
        visible_gpus().chosen(text)


def test_only_inherited_gpus_can_be_chosen(smi):
    smi(cards(8))
    found = visible_gpus({"CUDA_VISIBLE_DEVICES": "2,5"})
    assert [gpu.name for gpu in found.chosen("5")] == ["5"]
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES does not list GPU 0: it lists 2,5") as raised:
        found.chosen("0")
    assert raised.value.hint == "choose some of them, or start the command without CUDA_VISIBLE_DEVICES"
    with pytest.raises(ConfigError, match="does not list GPU 0: it lists none"):
        visible_gpus({"CUDA_VISIBLE_DEVICES": ""}).chosen("0")


def test_where_no_gpu_is_found_the_user_s_word_counts(smi):
    """A driver may work where nvidia-smi is not on the PATH."""
    assert [gpu.environment for gpu in visible_gpus().chosen("1")] == [{"CUDA_VISIBLE_DEVICES": "1"}]


def test_names_are_shown_in_short():
    assert shown_gpus(["0", "1", "2", "3", "0"]) == "GPUs 0-3"
    assert shown_gpus(["2"]) == "GPU 2"
    assert shown_gpus(["0", "2", "MIG-1"]) == "GPUs 0,2,MIG-1"


def test_the_modules_of_the_main_process_and_the_fork_server_do_not_import_torch():
    code = (
        "import sys, magicseg.core.gpus, magicseg.stages.placement, magicseg.stages.pool, magicseg.stages.worker\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
