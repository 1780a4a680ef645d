import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cellseg.cli import run_command, say, spelled
from cellseg.errors import UserError


def run(command, *argv: str) -> int:
    parser = argparse.ArgumentParser(prog="it")
    parser.add_argument("--number", type=int, default=0)
    return run_command(parser, command, argv)


def test_the_commands_own_status_is_returned(capsys):
    def command(arguments):
        say(f"number {arguments.number}")
        return arguments.number

    assert run(command) == 0
    assert run(command, "--number", "7") == 7
    assert capsys.readouterr().out == "number 0\nnumber 7\n"


def test_a_command_knows_the_words_that_were_typed(capsys):
    assert run(lambda arguments: say(" ".join(arguments.argv)) or 0, "--number", "7", "--debug") == 0
    assert capsys.readouterr().out == "--number 7 --debug\n"


def test_every_problem_is_a_line_on_standard_error_and_the_status_is_2(capsys):
    def command(_):
        raise UserError("a: one", "b: two")

    assert run(command) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: a: one\nerror: b: two\n"


def test_debug_shows_the_traceback_as_well(capsys):
    def command(_):
        raise UserError("a: one")

    assert run(command, "--debug") == 2
    captured = capsys.readouterr().err
    assert "Traceback (most recent call last)" in captured
    assert captured.endswith("error: a: one\n")


def test_ctrl_c_is_status_130_without_a_traceback(capsys):
    def command(_):
        raise KeyboardInterrupt

    assert run(command) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_bug_is_a_line_that_names_the_file_with_its_traceback(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def command(_):
        raise KeyError("ours\nand more")

    assert run(command, "--number", "7") == 1
    line = capsys.readouterr().err
    (file,) = tmp_path.glob("cellseg-error-*.txt")
    assert line.startswith("error: KeyError: 'ours") and line.count("\n") == 1
    assert str(file) in line and "report" in line
    text = file.read_text()
    assert text.startswith("command: it --number 7\n")
    assert "Traceback (most recent call last)" in text and "test_cli.py" in text


def test_a_bug_keeps_its_traceback_with_debug():
    def command(_):
        raise KeyError("ours")

    with pytest.raises(KeyError):
        run(command, "--debug")


def test_where_no_file_can_be_written_the_traceback_is_shown(capsys, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no room")

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", refuse)

    def command(_):
        raise KeyError("ours")

    assert run(command) == 1
    text = capsys.readouterr().err
    assert "Traceback (most recent call last)" in text and "its traceback is above" in text


@pytest.mark.parametrize("argv", [["--number", "x"], ["--unknown"], ["surplus"]])
def test_bad_arguments_are_status_2(argv, capsys):
    with pytest.raises(SystemExit) as raised:
        run(lambda _: 0, *argv)
    assert raised.value.code == 2
    assert "usage: it" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error():
    code = (
        "import argparse, sys\n"
        "from cellseg.cli import run_command, say\n"
        "sys.exit(run_command(argparse.ArgumentParser(), lambda _: [say('x' * 999) for _ in range(9999)] and 0, []))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 0


def test_a_path_that_no_check_foresaw_is_a_line_and_status_2(capsys):
    name = "x" * 300

    def command(_: argparse.Namespace) -> int:
        Path(name).read_text()
        return 0

    assert run_command(argparse.ArgumentParser(), command, []) == 2
    assert capsys.readouterr().err == f"error: {name}: must be usable, but got 'File name too long'. Check the path.\n"


def test_a_system_error_without_a_path_is_a_bug():
    def command(_: argparse.Namespace) -> int:
        raise OSError("no path")

    with pytest.raises(OSError, match="no path"):
        run_command(argparse.ArgumentParser(), command, ["--debug"])


def environment(tmp_path, monkeypatch, *programs: str):
    """An environment ``.venv`` in the working folder, in which this process then seems to run; not on the path."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("python", *programs):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return folder


TEXT = "Run python -m search.run X or `cellseg-search logs --trial 3`. `ray get-auth-token` prints it."


def test_printed_commands_work_where_nobody_activated_the_environment(tmp_path, monkeypatch, capsys):
    folder = environment(tmp_path, monkeypatch, "cellseg-search", "ray")
    say(TEXT)
    there = "Run .venv/bin/python -m search.run X or `.venv/bin/cellseg-search logs --trial 3`. "
    assert capsys.readouterr().out == there + "`.venv/bin/ray get-auth-token` prints it.\n"
    with spelled({"search.run": "cellseg-search run"}):
        say("python -m search.run X")
    assert capsys.readouterr().out == ".venv/bin/cellseg-search run X\n"

    def command(_):
        raise UserError("x: no. Run cellseg-search doctor.")

    assert run(command) == 2
    assert capsys.readouterr().err == "error: x: no. Run .venv/bin/cellseg-search doctor.\n"
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    say("python -m cellseg.config lists them")
    assert capsys.readouterr().out == f"{folder}/python -m cellseg.config lists them\n"


def test_printed_commands_have_their_names_in_an_active_environment(tmp_path, monkeypatch, capsys):
    folder = environment(tmp_path, monkeypatch, "cellseg-search", "ray")
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    say(TEXT)
    assert capsys.readouterr().out == f"{TEXT}\n"


def test_a_folder_with_a_space_is_quoted(tmp_path, monkeypatch, capsys):
    (tmp_path / "my cells").mkdir()
    environment(tmp_path / "my cells", monkeypatch)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    say("python -m search.run X")
    assert capsys.readouterr().out == f"'{tmp_path}/my cells/.venv/bin/python' -m search.run X\n"


@pytest.mark.parametrize(
    "text",
    [
        "This is a bug of cellseg-search; its traceback is above.",
        "cellseg-search 0.1.0",
        "other/cellseg-search run",
        "python -m pip install X",
        "`ray start --head` on the other machine",
    ],
)
def test_what_is_no_command_for_this_shell_stays(tmp_path, monkeypatch, capsys, text):
    environment(tmp_path, monkeypatch, "cellseg-search", "ray")
    say(text)
    assert capsys.readouterr().out == f"{text}\n"


def test_a_command_for_another_machine_stays(tmp_path, monkeypatch, capsys):
    environment(tmp_path, monkeypatch, "cellseg-search")
    say("cellseg-search submit a.yaml", here=False)
    assert capsys.readouterr().out == "cellseg-search submit a.yaml\n"
