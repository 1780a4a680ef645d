"""The console command: every command behind one door, under its own name."""

import shlex
import shutil
import subprocess
import sys
from importlib import import_module

import pytest

from cellseg.cli import say, spell
from search.__main__ import COMMANDS, PROGRAM, STAGES, main

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


def test_the_help_is_a_map_of_the_road(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert set(STAGES) <= set(COMMANDS)
    places = [text.index(f"\n{heading}\n  {first} ") for first, heading in STAGES.items()]
    assert places == sorted(places)
    for line in ("run quickstart", "check DATA", "predict nuclei_cpu IMAGES"):
        assert f"  {PROGRAM} {line}" in text
    assert max(map(len, text.splitlines())) <= 100


def completions(script: str, *words: str) -> list[str]:
    """What bash offers for the last word, with the printed script loaded."""
    code = (
        f"{script}\nCOMP_WORDS=({shlex.join(words)})\nCOMP_CWORD={len(words) - 1}\n"
        "$(complete -p cellseg-search | sed 's/.*-F \\([^ ]*\\) .*/\\1/')\nprintf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_bash_completes_commands_options_spaces_and_studies(capsys, monkeypatch, tmp_path):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    (tmp_path / "results" / "mine").mkdir(parents=True)
    (tmp_path / "my.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert completions(script, PROGRAM, "exp") == ["export", "export-model"]
    assert set(COMMANDS) <= set(completions(script, PROGRAM, ""))
    assert completions(script, PROGRAM, "run", "--tri") == ["--trials"]
    assert completions(script, PROGRAM, "run", "quick") == ["quickstart"]
    assert completions(script, PROGRAM, "run", "my") == ["my.yaml"]
    assert completions(script, PROGRAM, "logs", "--study", "m") == ["mine"]
    assert completions(script, PROGRAM, "completion", "") == ["bash", "zsh"]


def test_the_script_for_zsh_names_every_command_and_parses(capsys, tmp_path):
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith(f"#compdef {PROGRAM}")
    assert all(f"    {name}:'" in script for name in COMMANDS)
    assert "quickstart" in script
    if shutil.which("zsh") is not None:
        (tmp_path / "script").write_text(script)
        done = subprocess.run(["zsh", "-n", tmp_path / "script"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
