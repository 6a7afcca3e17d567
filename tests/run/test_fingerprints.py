"""The fingerprints of the shipped presets, as constants.

A fingerprint that changes makes all finished shards of existing runs stale. Change a constant only together with a
recipe number, a preset or an option, and say so in CHANGELOG.md.
"""

import pytest

from magicseg.backends import BATCH_METHODS
from magicseg.cli.cluster import JobStage, SubmitStage
from magicseg.config.loading import load_config, preset_names
from magicseg.config.stage_declarations import DECLARATIONS, JOBS
from magicseg.launch.profile import FOLLOW_UP
from magicseg.run import Run
from magicseg.stages.base import stage_code

GOLDEN = {
    "flux": {
        "describe": "e90261501bad7d064f0d53834778a01747db42e99974d45027e85354792aaf8c",
        "generate": "a360f3335eb6700cd5c5573a96905ffe0608fe7d5687d7d58bd6b7b0ef390bc4",
        "mask": "408fb34b92265b722b1b2a20db1ce0a6999d21a0590d6652ab49e340cb4092e4",
    },
    "miniature": {
        "describe": "617e88b8c5fd1ee90d5fd3a71cf9df7e5b20d43a9885bde722591ce911cf4682",
        "generate": "3836ac9b43f96e0a656e7a3b4cbe748e844401b2f38fac4f41c4bcb12767f025",
        "mask": "fafa66b4cfa00233ccdb5f1120d0de8fd1d5fac83e5c40deac302e839aade885",
    },
    "miniature+jpeg": {
        "describe": "617e88b8c5fd1ee90d5fd3a71cf9df7e5b20d43a9885bde722591ce911cf4682",
        "generate": "3cb36d3f6537a44d9debb4882ff9d5bf2e230349d905509e11a2d06cd36bd8e9",
        "mask": "c77659dbdf5b340d06e6f175c90265bdaaea5b9895c7069e13d6f2b0639da2cf",
    },
    "painted": {
        "describe": "617e88b8c5fd1ee90d5fd3a71cf9df7e5b20d43a9885bde722591ce911cf4682",
        "generate": "f23ebf38d092cbf440b3bd62389e3d58b8a48332ffe7a27d913426c11bdb408d",
        "mask": "6b0bf70ce639e0282e78c33c4915092fe067a3fc351386b952615796b1af19cb",
    },
    "paper": {
        "describe": "9c5079c2562a2a73c47e1d4507df5035d9e5591a1f48687edb27bc6a2e4c0d85",
        "generate": "e9ff0c15ca44a2340b01a7721aa0aa86997bc46fbe4db8d98702c93022e582a4",
        "mask": "112a3a6d2898211e53978bc465901d780dba9b259a70436039348e648d81ac8f",
    },
    "sdxl": {
        "describe": "e90261501bad7d064f0d53834778a01747db42e99974d45027e85354792aaf8c",
        "generate": "1653f707f29a54e67e1dd855acf171e1dc2639e7a4e4bfbc2acb0da2f62d2e87",
        "mask": "de56f49ec12fbb60479e41e6dbab46e104b534c4b16e5bc5675516500d0878f2",
    },
    "sdxl-turbo": {
        "describe": "e90261501bad7d064f0d53834778a01747db42e99974d45027e85354792aaf8c",
        "generate": "3d621423aab4d000eb0d1dc926a4cb4f1ab853a2789523878cdd57280219a59b",
        "mask": "f4218e812f2d4a20906be44a5023d4d14d6d9e7e04b7edf332aadd3ff60abbca",
    },
}


@pytest.mark.parametrize("case", GOLDEN)
def test_the_fingerprints_of_a_preset_stay_as_they_are(tmp_path, case):
    preset, _, codec = case.partition("+")
    overrides = ["plan.samples=4", "plan.shard_size=2", *([f"store.image_codec={codec}"] if codec else [])]
    run = Run.create(tmp_path / "run", load_config(preset=preset, overrides=overrides))
    assert {stage: fingerprint.digest for stage, fingerprint in run.fingerprints.items()} == GOLDEN[case]


def test_every_preset_has_golden_fingerprints():
    assert {case.partition("+")[0] for case in GOLDEN} == set(preset_names())


def test_the_code_of_a_stage_is_where_its_declaration_says():
    for name, declaration in DECLARATIONS.items():
        assert stage_code(name).declaration is declaration
        assert declaration.backends in BATCH_METHODS


def test_the_commands_that_submit_know_every_job():
    assert tuple(SubmitStage) == (*JOBS, "all")
    assert tuple(JobStage) == (*JOBS, FOLLOW_UP)
