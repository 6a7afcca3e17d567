"""The command line with closed or full outputs, unusual names, and untrusted text in its output."""

import io
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers.tiny_runs import CommandLine, make_run
from magicseg.cli.output import log_text, note, plain_console, print_json, print_line, report_error
from magicseg.core.errors import DataError, RunError
from magicseg.core.text import command, indented, is_control_character, printable

FOREIGN = [
    "\x1b[2J\x1b]0;title\x07",
    "\x9b31m",
    "a\nhint:  rm -rf /",
    "a\r\nerror: forged",
    "a\x00b",
    "\u202egnp.exe",
    "\u2028hint:  x",
    "\udcff.jpg",
    "[/red]",
    "[link=https://example.org]x[/link]",
    "[bold",
    ":warning: \\[x]",
    "$\\frac{1}{$",
    "x" * 100_000,
]


def is_harmless(shown: str) -> bool:
    """Return whether a text contains no control characters except line ends."""
    return not any(is_control_character(character) and character != "\n" for character in shown)


@pytest.mark.parametrize("text", FOREIGN)
def test_untrusted_text_in_an_error_cannot_imitate_output_lines(text: str, capsys: Any) -> None:
    report_error(DataError(f"the server says {text}", hint="try again"))
    shown = capsys.readouterr().err
    assert is_harmless(shown)
    lines = shown.splitlines()
    assert [line[:7] for line in lines if not line.startswith(" " * 7)] == ["error: ", "hint:  "]
    assert lines[-1] == "hint:  try again"
    assert len(shown) < 5000


@pytest.mark.parametrize("text", FOREIGN)
def test_a_hint_is_one_line_for_any_text(text: str, capsys: Any) -> None:
    report_error(RunError("no", hint=command("magicseg", "init", text)))
    shown = capsys.readouterr().err
    assert is_harmless(shown)
    assert len(shown.splitlines()) == 2


@pytest.mark.parametrize("text", FOREIGN)
@pytest.mark.parametrize(
    "show", [note, print_line, lambda text: print(log_text(text)), lambda text: print_json([text])]
)
def test_every_way_of_printing_escapes_control_characters(text: str, show: Any, capsys: Any) -> None:
    show(text)
    shown = "".join(capsys.readouterr()).replace("\r", "")
    assert is_harmless(shown)
    assert shown.strip()


@pytest.mark.parametrize("text", FOREIGN)
def test_json_keeps_every_character(text: str, capsys: Any) -> None:
    print_json({"label": text})
    assert json.loads(capsys.readouterr().out) == {"label": text}


@pytest.mark.parametrize("text", FOREIGN)
def test_a_table_prints_markup_literally(text: str, capsys: Any) -> None:
    from rich.table import Table

    table = Table(text, title=text, caption=text)
    table.add_column(text, overflow="fold")
    table.add_row(text, text)
    console = plain_console()
    console.print(table)
    console.print(text)
    shown = capsys.readouterr().out
    assert is_harmless(shown)
    if len(text) < 50:
        assert printable(text, allowed="\n").split("\n")[0] in shown


@pytest.mark.parametrize(
    "name",
    [
        "nosuch; touch X",
        "$(touch X)",
        "`touch X`",
        "a b",
        "a'b",
        'a"b',
        "*",
        "-rf",
        "a\nb",
        "a&&touch X",
        ">X",
        "[/red]",
        "~",
        "#x",
    ],
)
def test_a_hint_quotes_unusual_names_for_the_shell(typed: Any, name: str) -> None:
    result = typed("status", "--", name)
    assert result.code == 2
    (hint,) = [line for line in result.err.splitlines() if line.startswith("hint:  ")]
    words = shlex.split(hint.removeprefix("hint:  ").replace("\\n", "\n"))
    assert words == ["magicseg", "init", name, "--preset", "miniature"]


@pytest.mark.parametrize("name", ["[/red]", "[bold]run", "a\x1b[31mb", "a b; c"])
def test_a_run_with_an_unusual_name_has_a_status(typed: Any, tmp_path: Path, name: str) -> None:
    make_run(tmp_path / name, "plan.samples=2", "plan.shard_size=2")
    result = typed("status", name)
    assert (result.code, is_harmless(result.out)) == (0, True)
    assert json.loads(typed("status", name, "--json").out)["run"].endswith(name)


def test_labels_with_markup_are_scored_and_shown(typed: Any, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    (tmp_path / "labels.txt").write_text("[/red]\n[bold]dog\n")
    (tmp_path / "own.yaml").write_text(
        "name: own\nvocabulary: labels.txt\nimages: ['{name}.jpg']\nlabels_in: [{path: '{name}.png'}]\n"
        "origin: here\nsource: me\n"
    )
    for folder in ("data", "predicted"):
        (tmp_path / folder).mkdir()
        Image.fromarray(np.array([[1, 2]], np.uint8)).save(tmp_path / folder / "a.png")
    Image.new("RGB", (2, 1)).save(tmp_path / "data" / "a.jpg")
    result = typed("score", "--benchmark", "own.yaml", "--data", "data", "--predictions", "predicted")
    assert result.code == 0, result.err
    assert "[/red]" in result.out
    assert "[bold]dog" in result.out


_LONG = "x" * 300


@pytest.mark.parametrize(
    "words",
    [
        ("status", _LONG),
        ("init", _LONG, "--preset", "miniature"),
        ("init", "x", "--config", _LONG),
        ("init", "x", "--preset", _LONG),
        ("predict", _LONG, "--model", "m", "--labels", "a", "--out", "o"),
        ("mask", "--images", _LONG, "--labels", "a", "--out", "o", "--preset", "miniature"),
        ("score", "--benchmark", "voc21", "--data", _LONG, "--predictions", _LONG),
        ("score", "--benchmark", f"{_LONG}.yaml", "--data", ".", "--predictions", "."),
        ("evaluate", _LONG),
        ("compare", _LONG),
        ("export", _LONG, "--out", "o"),
        ("report", _LONG),
        ("verify", _LONG),
        ("submit", "all", _LONG),
        ("train", _LONG),
        ("fetch", _LONG),
        ("logs", _LONG),
        ("reset", "mask", _LONG, "--yes"),
        ("reset", "\x1b[31m", "x", "--yes"),
        ("status", "\udcff"),
        ("init", "x", "--config", "\udcff"),
        ("predict", "\udcff", "--model", "m", "--labels", "a", "--out", "o"),
        ("score", "--benchmark", "\udcff", "--data", ".", "--predictions", "."),
        ("compare", "\udcff"),
        ("status", "/dev/null"),
        ("status", "/dev/null/x"),
        ("init", "/dev/null/x", "--preset", "miniature"),
        ("init", "x", "--config", "/dev/zero"),
        ("init", "x", "--config", "."),
    ],
)
def test_an_unusable_name_gives_an_error_message(typed: Any, words: tuple[str, ...]) -> None:
    result = typed(*words)
    assert result.code in {1, 2}
    assert "error: " in result.err or "Error" in result.err
    assert "Traceback" not in result.err


@pytest.fixture
def shell(magicseg: CommandLine) -> Any:
    """Return a function that runs a line of bash with ``magicseg``: exit code, standard output, standard error."""

    def run(line: str) -> tuple[int, str, str]:
        code = shlex.quote("from magicseg.cli import main; main()")
        done = subprocess.run(
            ["bash", "-c", f'magicseg() {{ {shlex.quote(sys.executable)} -c {code} "$@"; }}; {line}'],
            cwd=magicseg.folder,
            env=magicseg.environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_results_on_a_full_disk_are_an_error(shell: Any, unbuffered: str) -> None:
    code, _, err = shell(f"PYTHONUNBUFFERED={unbuffered} magicseg schema > /dev/full")
    assert code == 1
    assert err.startswith("error: the results cannot be written to standard output: No space left on device\nhint:  ")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("magicseg status nosuch 2> /dev/full", 2),
        ("magicseg status nosuch 2>&-", 2),
        ("magicseg status nosuch <&- >&- 2>&-", 2),
        ("magicseg schema >&-", 0),
        ("magicseg schema > /dev/full 2> /dev/full", 1),
        ("magicseg --nosuch 2> /dev/full", 2),
        ("magicseg --version | cat", 0),
        ("set -o pipefail; magicseg schema | true", 1),
        ("mkdir gone; cd gone; rmdir ../gone; magicseg status x", 2),
        ("mkdir gone; cd gone; rmdir ../gone; magicseg schema > /dev/null", 0),
    ],
)
def test_closed_and_full_streams_have_the_right_exit_code(shell: Any, line: str, code: int) -> None:
    assert shell(line)[0] == code


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_messages_that_cannot_be_written_do_not_stop_the_work(shell: Any, tmp_path: Path) -> None:
    line = "magicseg init run --preset painted --set plan.samples=2 --set plan.shard_size=2"
    assert shell(f"{line} 2> /dev/full")[0] == 0
    assert (tmp_path / "run" / "magicseg.yaml").exists()


def test_output_to_a_closed_stream_does_not_reach_another_file(shell: Any, tmp_path: Path) -> None:
    line = "magicseg init run --preset painted --set plan.samples=2 --set plan.shard_size=2 >&- 2>&-"
    assert shell(line)[0] == 0
    assert shell("magicseg verify run")[0] == 0


def test_a_deleted_current_directory_is_named_in_the_error(shell: Any) -> None:
    _, _, err = shell("mkdir gone; cd gone; rmdir ../gone; magicseg init x --preset miniature")
    assert "the current directory was deleted" in err


def test_an_encoding_without_the_characters_writes_escapes(shell: Any, tmp_path: Path) -> None:
    make_run(tmp_path / "läuft", "plan.samples=2", "plan.shard_size=2")
    code, out, _ = shell("PYTHONIOENCODING=ascii magicseg status läuft --json")
    assert code == 0
    assert json.loads(out)["run"].endswith("läuft")


def test_the_version_is_printed(typed: Any) -> None:
    from magicseg import __version__

    assert typed("--version").out == f"magicseg {__version__}\n"


def test_lines_of_untrusted_text_are_indented() -> None:
    assert indented("a\nb\r\nc", "  ") == "a\n  b\\r\n  c"
    assert io.StringIO(indented("a", "  ")).read() == "a"


@pytest.mark.parametrize("text", FOREIGN)
def test_a_report_escapes_markup_in_untrusted_text(text: str) -> None:
    from magicseg.report.page import _environment

    shown = _environment().from_string("<p>{{ text }}</p>").render(text=f"{text}</p><script>")
    assert is_harmless(shown)
    assert shown.count("<") == 2


def test_names_in_figures_are_not_parsed_as_formulas(tmp_path: Path) -> None:
    from magicseg.evaluate.figures import write_charts

    name = "cash $\\frac{1}{$ and $$"
    results = {
        "head": name,
        "benchmark": name,
        "images": 1,
        "miou": 0.5,
        "confusion": [[1, 0], [0, 1]],
        "iou": {name: 0.5, "b": None},
        "iou_interval": {name: None, "b": None},
    }
    for path in write_charts(results, tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")
