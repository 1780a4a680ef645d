"""Print the script that completes commands, options and files in a shell: ``python -m search.commands.completion``."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from cellseg.cli import EXIT_OK, run_command

SHELLS = ("bash", "zsh")
PROGRAM = "cellseg-search"
_FILE_METAVARS = {"MODEL", "INPUT", "SOURCE", "DATA", "ROOT", "CONFIG", "CONFIG.yaml"}
_PREAMBLE = {
    "bash": """\
_cellseg_spaces() {{ compgen -W "{spaces}" -- "$1"; compgen -f -- "$1"; }}
_cellseg_studies() {{ compgen -W "$(cd results 2>/dev/null && ls -d */ 2>/dev/null | tr -d /)" -- "$1"; }}
""",
    "zsh": """\
_cellseg_spaces() {{ compadd {spaces}; _files; }}
_cellseg_studies() {{ compadd -- results/*(N/:t); }}
""",
}
"""Shell functions that list the shipped spaces beside files, and the studies in ``results``."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    return run_command(_parser(), _command, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m search.commands.completion",
        description="Print the script that completes the words of cellseg-search in a shell. For this shell alone:",
        epilog='eval "$(cellseg-search completion bash)"; for all to come, add that line to ~/.bashrc. '
        "In zsh it goes into ~/.zshrc, behind compinit, with zsh in place of bash.",
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    import shtab

    from search.space.shipped import shipped_spaces

    preamble = {shell: text.format(spaces=" ".join(shipped_spaces())) for shell, text in _PREAMBLE.items()}
    script = shtab.complete(_whole_parser(), arguments.shell, preamble=preamble)
    sys.stdout.write(script + "\n")
    return EXIT_OK


def _whole_parser() -> argparse.ArgumentParser:
    """One parser with every command's own as a sub-parser, whose arguments know how they are completed."""
    # The table of commands stands a floor above, and names this module: looked up, not imported.
    commands = import_module("search.__main__").COMMANDS
    parser = argparse.ArgumentParser(prog=PROGRAM)
    parsers = parser.add_subparsers(metavar="COMMAND")
    for name, (module, summary) in commands.items():
        imported = import_module(module)
        if hasattr(imported, "__path__"):
            imported = import_module(f"{module}.__main__")
        own: argparse.ArgumentParser = imported._parser()
        own.add_argument("--debug", action="store_true", help="show the traceback of an error")
        parsers.add_parser(name, parents=[own], add_help=False, description=summary, help=summary)
        for action in own._actions:
            if (completed := _completion_of(action)) is not None:
                action.complete = completed  # type: ignore[attr-defined]
    return parser


def _completion_of(action: argparse.Action) -> dict[str, str] | None:
    """How shtab completes the values of an argument; None: only those it lists itself."""
    import shtab

    if action.metavar == "SPACE":
        return dict.fromkeys(SHELLS, "_cellseg_spaces")
    if action.dest == "study" or action.metavar == "STUDY":
        return dict.fromkeys(SHELLS, "_cellseg_studies")
    if action.metavar == "DIR":
        return shtab.DIRECTORY
    if action.type is Path or action.metavar in _FILE_METAVARS:
        return shtab.FILE
    return None


if __name__ == "__main__":
    sys.exit(main())
