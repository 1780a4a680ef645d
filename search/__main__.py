"""The console command ``cellseg-search``: one door to every command of both packages; also ``python -m search``."""

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from cellseg.cli import EXIT_OK, own_program, run_command, say, spelled
from cellseg.errors import UserError
from cellseg.names import unknown_name

PROGRAM = "cellseg-search"
COMMANDS = {
    "doctor": ("search.commands.doctor", "check the installation, this machine and a cluster"),
    "check": ("cellseg.data.check", "find the problems of a data set before you search"),
    "import": ("cellseg.data.import_labels", "make a data set of what other tools annotated"),
    "config": ("cellseg.config", "list every hyperparameter with its values, default and meaning"),
    "weights": ("search.commands.weights", "fetch the pretrained weights that a space can ask for"),
    "run": ("search.run", "search a space, or continue a stopped study"),
    "submit": ("search.commands.submit", "send a search to a cluster, where it goes on without this machine"),
    "jobs": ("search.commands.jobs", "list the studies that were submitted to a cluster"),
    "stop": ("search.commands.stop", "stop a submitted study; nothing is lost"),
    "status": ("search.commands.status", "show how a search is doing, also on another machine"),
    "report": ("search.report", "show the results of a study, also while it runs"),
    "dashboard": ("search.commands.dashboard", "show a study in optuna-dashboard"),
    "logs": ("search.commands.logs", "show what a trial printed, or follow a submitted study"),
    "export": ("search.export", "write the best trial's predictions for the test images"),
    "predict": (
        "search.commands.predict",
        "predict images: label images, outlines and tables of their cells",
    ),
    "export-model": ("search.commands.export_model", "write a trained model as a folder of its own"),
    "train": ("cellseg.train", "train a single config, without a search"),
    "synthetic": ("cellseg.data.synthetic", "generate a data set of synthetic cells"),
    "coco": ("cellseg.data.coco", "write the annotations of a data set as COCO"),
    "optuna-export": ("search.optuna_export", "write a study for Optuna's dashboard and plots"),
    "completion": ("search.commands.completion", "print the script that completes commands in bash or zsh"),
}
"""Name -> (module or package that ``python -m`` runs, help in one line), in the order in which a user meets them."""
STAGES = {
    "doctor": "Before the search",
    "run": "Search",
    "status": "Look at it",
    "export": "Use the best model",
    "train": "Beside the search",
}
"""First command of each stage of the road -> heading of the stage."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first word names, with the other words; the exit status.

    Only the module of that command is imported.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words and words[0] in COMMANDS:
        with spelled({module: f"{PROGRAM} {name}" for name, (module, _) in COMMANDS.items()}):
            return _main_of(words[0])(words[1:])
    # An unknown name is reported before what follows it: its options are unknown as well.
    named = words and not words[0].startswith("-")
    return run_command(_parser(), _command, words[:1] if named else words)


def _main_of(name: str) -> Callable[[Sequence[str]], int]:
    """The ``main`` of a command, found where ``python -m`` finds it."""
    module = import_module(COMMANDS[name][0])
    if hasattr(module, "__path__"):
        module = import_module(f"{module.__name__}.__main__")
    return module.main


def _parser() -> argparse.ArgumentParser:
    from cellseg import __version__

    program, width = own_program(PROGRAM), max(map(len, COMMANDS))
    lines: list[str] = []
    for name, (_, summary) in COMMANDS.items():
        if name in STAGES:
            lines += ["", STAGES[name]]
        lines.append(f"  {name:{width}}  {summary}")
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        usage=f"{PROGRAM} COMMAND [options]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="\n".join(
            [
                "Find the best Mask R-CNN for your cells: check your images, search, look at the report, predict.",
                "",
                f"  {program} run quickstart          try it without any data",
                f"  {program} check DATA              then with your own images:",
                f"  {program} run nuclei_cpu --data DATA",
                f"  {program} report",
                f"  {program} predict nuclei_cpu IMAGES",
            ]
        ),
        epilog="\n".join(
            [
                "All commands, in the order in which you will need them:",
                *lines,
                "",
                f"Options of a command: {program} COMMAND --help",
            ]
        ),
    )
    parser.add_argument("command", nargs="?", metavar="COMMAND", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser


def _command(arguments: argparse.Namespace) -> int:
    if arguments.command is not None:
        raise UserError(unknown_name(arguments.command, COMMANDS, "a command"))
    say(_parser().format_help().rstrip())
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
