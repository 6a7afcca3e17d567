"""The command line's contract: exit codes, JSON, hints, no tracebacks, light imports."""

import json
import subprocess
import sys

import pytest
from typer.main import get_command

from helpers.tiny_runs import TINY, change
from magicseg.cli import app
from magicseg.run.claims import try_claim

COMMANDS = sorted(get_command(app).commands)
LISTED = {
    "demo", "init", "fetch", "doctor", "describe", "generate", "mask", "train", "evaluate", "score", "run", "status",
    "verify", "repair", "reset", "digest", "report", "export", "import", "schema",
}  # fmt: skip


def test_every_documented_command_exists():
    assert set(COMMANDS) >= LISTED


def test_help_of_every_command_appears_without_heavy_imports():
    code = (
        "import sys\n"
        "from magicseg.cli import main\n"
        "for name in sys.argv[1].split(','):\n"
        "    sys.argv = ['magicseg', *([name] if name else []), '--help']\n"
        "    try: main()\n"
        "    except SystemExit as end: assert end.code == 0, (name, end.code)\n"
        "heavy = {'torch', 'torchvision', 'zarr', 'h5py', 'numpy', 'scipy', 'matplotlib', 'submitit'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ",".join(["", *COMMANDS])], check=True, capture_output=True, text=True
    )
    assert done.stdout.rstrip().endswith("heavy: []"), done.stdout[-200:]
    assert "Exit codes: 0 done; 1 some work failed" in done.stdout


@pytest.mark.slow
def test_the_commands_of_the_data_stages_work_in_sequence(magicseg, expected_digest):
    sets = [word for setting in TINY for word in ("--set", setting)]
    assert magicseg("init", "run", "--preset", "painted", *sets).code == 0
    assert magicseg("init", "run", "--preset", "painted", *sets).code == 0, "twice is harmless"
    for stage in ("describe", "generate", "mask"):
        assert magicseg(stage, "run").code == 0
    again = magicseg("mask", "run")
    assert again.code == 0
    assert "nothing to do" in again.err
    assert magicseg("digest", "run").out == expected_digest + "\n"
    assert "sound" in magicseg("verify", "run").out


def test_status_keeps_its_contract(magicseg, finished):
    finished.reset("mask")
    finished.ledger("generate").take_back([1, 4, 5])
    finished.ledger("generate").fail(4, "Boom", "it broke")
    with try_claim(finished.ledger("generate").claim_path(5)):
        state = json.loads(magicseg("status", finished.path, "--json").out)
    assert list(state["stages"]) == ["describe", "generate", "mask"]
    assert state["stages"]["describe"]["shards"] == {
        "total": 6, "committed": 6, "failed": 0, "running": 0, "pending": 0,
    }  # fmt: skip
    assert state["stages"]["generate"]["shards"] == {
        "total": 6, "committed": 3, "failed": 1, "running": 1, "pending": 1,
    }  # fmt: skip
    samples = state["stages"]["generate"]["samples"]
    assert samples["kept"] + sum(samples["dropped"].values()) == 48
    assert state["stages"]["generate"]["failures"] == {"4": "Boom: it broke"}
    assert state["stages"]["mask"]["samples"] == {"kept": 0, "dropped": {}, "fallbacks": {}}


def test_status_counts_drops_by_reason(magicseg, finished):
    commits = finished.ledger("mask").commits().values()
    samples = json.loads(magicseg("status", finished.path, "--json").out)["stages"]["mask"]["samples"]
    assert samples["kept"] == sum(record.kept_count for record in commits)
    assert sum(samples["dropped"].values()) == sum(sum(record.dropped.values()) for record in commits)


def test_status_warns_of_work_of_other_settings(magicseg, finished):
    change(finished, "generate.size", 48)
    state = json.loads(magicseg("status", finished.path, "--json").out)
    assert any(f"magicseg reset generate {finished.path}" in warning for warning in state["warnings"])
    assert "warning" in magicseg("status", finished.path).out


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (["status", "nowhere"], "is not a run", "magicseg init nowhere --preset miniature"),
        (["init", "new"], "needs a preset", "--preset miniature"),
        (["init", "new", "--preset", "miniatur"], "no preset 'miniatur'", "miniature"),
        (["init", "new", "--config", "missing.yaml"], "missing.yaml: there is no such file", ""),
        (
            ["init", "new", "--preset", "painted", "--set", "plan.sample=3"],
            "plan.sample is not a setting",
            "samples",
        ),
        (["init", "new", "--preset", "painted", "--set", "labels.vocabulary=vok"], "vok", ""),
        (["generate", "RUN", "--shards", "7"], "shard 7 does not exist", "--shards 0-5"),
        (["generate", "RUN", "--shards", "3-1"], "is in descending order", "--shards 1-3"),
        (["generate", "RUN", "--shards", " "], "--shards is empty", "--shards 0-3,7"),
        (["generate", "RUN", "--workers", "0"], "workers", ""),
        (["reset", "paint", "RUN"], "no stage 'paint'", "generate"),
        (["export", "RUN", "--out", "RUN/magicseg.yaml"], "exists", "choose another file"),
        (["import", "missing.h5", "--into", "new"], "missing.h5", ""),
        (["import", "RUN/magicseg.yaml", "--into", "new"], "HDF5", ""),
        (["frobnicate"], "frobnicate", ""),
    ],
)
def test_invalid_input_exits_with_2_a_message_and_a_hint(magicseg, finished, arguments, words, hint):
    result = magicseg(*(argument.replace("RUN", str(finished.path)) for argument in arguments))
    assert result.code == 2, result.err
    assert words in result.err
    assert hint in result.err
    assert not (magicseg.folder / "new").exists()


def test_init_refuses_a_folder_with_other_files(magicseg):
    (magicseg.folder / "thesis").mkdir()
    (magicseg.folder / "thesis/chapter1.tex").write_text("x")
    (magicseg.folder / "file").write_text("x")
    for place in ("thesis", "file", "file/below"):
        result = magicseg("init", place, "--preset", "painted")
        assert result.code in {1, 2}
        assert "hint" in result.err
    assert [path.name for path in (magicseg.folder / "thesis").iterdir()] == ["chapter1.tex"]


def test_a_run_with_other_settings_is_not_overwritten(magicseg, finished):
    result = magicseg("init", finished.path, "--preset", "painted", "--set", "plan.samples=5")
    assert result.code == 2
    assert "exists with other settings" in result.err
    assert len(finished.ledger("mask").commits()) == 6


def test_an_interrupted_init_is_resumed(magicseg, fresh):
    file = fresh.path / "magicseg.yaml"
    file.rename(file.with_name("magicseg.yaml.1.ab.partial"))
    result = magicseg("init", fresh.path, "--preset", "painted", "--set", "plan.samples=40")
    assert result.code == 0, result.err
    assert magicseg("describe", fresh.path).code == 0


@pytest.mark.parametrize("text", ["", "plan: [", "preset: painted", "[]", "\x00"])
def test_a_damaged_configuration_exits_with_2_without_a_traceback(magicseg, fresh, text):
    (fresh.path / "magicseg.yaml").write_text(text)
    assert magicseg("status", fresh.path).code == 2


@pytest.mark.slow
def test_damage_exits_with_1_and_working_hints(magicseg, finished, expected_digest):
    file = finished.store.path / "generate/image/2.0.0.0"
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    result = magicseg("verify", finished.path)
    assert result.code == 1
    assert f"{file}: checksum differs (shard 2 of generate)" in result.err
    assert magicseg.typed(_hinted(result)).code == 0
    assert magicseg("generate", finished.path).code == 0
    assert magicseg("digest", finished.path).out.strip() == expected_digest
    assert magicseg("verify", finished.path).code == 0


@pytest.mark.slow
def test_every_command_reports_a_damaged_record_with_a_remedy(magicseg, finished, expected_digest):
    file = finished.ledger("generate").record_path(3)
    file.write_bytes(file.read_bytes()[:-20])
    for command in ("status", "generate", "digest", "verify"):
        result = magicseg(command, finished.path)
        assert result.code == 1, command
        assert f"magicseg repair {finished.path}" in result.err
    assert magicseg("repair", finished.path).code == 0
    assert magicseg("generate", finished.path).code == 0
    assert magicseg("digest", finished.path).out.strip() == expected_digest


def test_an_unfinished_data_set_has_no_digest_and_no_export(magicseg, fresh):
    for arguments in (["digest", fresh.path], ["export", fresh.path, "--out", "x.h5"]):
        result = magicseg(*arguments)
        assert result.code == 1
        assert f"magicseg run {fresh.path}" in result.err
    assert not (magicseg.folder / "x.h5").exists()


def test_reset_asks_for_confirmation(magicseg, finished):
    result = magicseg("reset", "mask", finished.path)  # without an answer
    assert result.code == 1
    assert len(finished.ledger("mask").commits()) == 6
    assert magicseg("reset", "mask", finished.path, "--yes").code == 0
    assert finished.ledger("mask").commits() == {}


def test_the_schema_is_json(magicseg):
    assert "plan" in json.loads(magicseg("schema").out)["properties"]


def _hinted(result):
    return next(line for line in result.err.splitlines() if line.startswith("hint:")).removeprefix("hint:").strip()
