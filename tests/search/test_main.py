"""The console command: every command behind one door, under its own name."""

import subprocess
import sys
from importlib import import_module

import pytest

from cellseg.cli import say, spell
from search.__main__ import COMMANDS, PROGRAM, main

HEAVY = {"torch", "ray", "optuna", "pyarrow", "albumentations", "cv2", "pydantic", "numpy"}


@pytest.mark.parametrize("argv", [[], ["--help"]])
def test_the_help_lists_every_command_and_loads_nothing_heavy(argv):
    code = (
        "import sys; from search.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print('loaded:', *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    text, loaded = done.stdout.split("loaded:")
    lines = [line.split() for line in text.splitlines() if line.startswith("  ")]
    assert [words[0] for words in lines if words[0] in COMMANDS] == list(COMMANDS)
    assert not HEAVY & set(loaded.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_calls_itself_by_the_name_that_was_typed(name, capsys):
    module, summary = COMMANDS[name]
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: {PROGRAM} {name} ")
    assert "python -m" not in text.split("options:")[0]
    assert len(summary) < 70
    with pytest.raises(SystemExit) as end:
        main([name, "--no-such-option"])
    assert end.value.code == 2
    assert f"{PROGRAM} {name}: error:" in capsys.readouterr().err

    imported = import_module(module)
    command = import_module(f"{module}.__main__") if hasattr(imported, "__path__") else imported
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert capsys.readouterr().out.startswith(f"usage: python -m {module} ")


@pytest.mark.parametrize(
    ("name", "near"), [("rnu", "run"), ("exports", "export"), ("optuna_export", "optuna-export"), ("Report", "report")]
)
def test_an_unknown_command_gets_the_nearest_one_whatever_follows(name, near, capsys):
    assert main([name, "quickstart", "--trials", "2"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"error: {name}: must be a command, but got an unknown name. Did you mean '{near}'?\n"


def test_an_unknown_command_far_from_all_gets_the_list(capsys):
    assert main(["xyzzy"]) == 2
    assert f"Valid names are {', '.join(COMMANDS)}." in capsys.readouterr().err


def test_an_unknown_option_before_the_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--fast", "run"])
    assert end.value.code == 2
    assert f"{PROGRAM}: error: unrecognized arguments: --fast" in capsys.readouterr().err


def test_a_command_gets_the_words_behind_its_name_and_its_status_comes_back(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["config", "optim"]) == 0
    keys = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert keys and all(key.startswith("optim.") for key in keys)
    assert main(["report"]) == 2


def test_what_commands_say_of_each_other_is_what_the_user_types(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    main(["report"])
    assert capsys.readouterr().err == (
        f"error: results: must hold a study, but got none. Run {PROGRAM} run SPACE.yaml first.\n"
    )
    say("python -m search.run")  # the names are those of the one call
    assert capsys.readouterr().out == "python -m search.run\n"


def test_only_whole_names_of_modules_are_spelled_anew():
    from cellseg.cli import spelled

    with spelled({"search.run": "it run", "cellseg.data": "it data"}):
        assert spell("`python -m search.run X`, python -m search.run.") == "`it run X`, it run."
        assert spell("python -m cellseg.data.check and python -m search.runner") == (
            "python -m cellseg.data.check and python -m search.runner"
        )
