"""The command ``search.run`` with trials that do not train, and a process that starts it within a tenth of a second.

Everything else is the product's: command, lock, preparation, preflight, Tune, board, tables. Each command is a process
of its own in a session of its own, forked from one that has imported everything: imports take longer than a study.
"""

import errno
import fcntl
import itertools
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from fakes import FakeTrainable, lifelike_report

TRIALS = 11
EPOCHS = 6
EPOCH_SECONDS = 0.1
STUDY = f"""
metric: segm/AP50
direction: maximize
trials: {TRIALS}
epochs: {EPOCHS}
keep: 2
asha: {{grace: 1, reduction: 3}}
resources: {{cpu: 1}}
data:
  generate: {{train: 10, test: 3, seed: 1, size: 64}}
space:
  optim.lr: {{low: 1e-4, high: 1e-2, log: true}}
  train.batch_size: {{choices: [1, 2, 4]}}
  model.backbone: resnet10t
  model.weights: none
"""


def journal_of(results: Path, study: str) -> Path:
    """Where trials note what they did, a JSON list a line: ``[event, trial, epoch, pid, time]``. The event is
    ``start`` (of a process, at that epoch), ``begin`` or ``epoch`` (the end of one)."""
    return results / f"{study}.journal"


def hold_of(results: Path, study: str) -> Path:
    """File that holds trials within the epochs that they began, as long as it is there."""
    return results / f"{study}.hold"


class StandIn(FakeTrainable):
    """Epochs of :data:`EPOCH_SECONDS` on curves that follow from the trial's number, with a checkpoint as training has
    it: replaced in one step, and there before the epoch is reported."""

    def _fit(self, config: dict[str, Any]) -> Iterator[dict[str, Any]]:
        number, folder = config["number"], Path(config["folder"])
        journal, hold = journal_of(folder.parents[2], config["study"]), hold_of(folder.parents[2], config["study"])
        last = folder / "last" / "checkpoint.json"
        for place in (last.parent, folder / "best"):
            place.mkdir(parents=True, exist_ok=True)
        epoch = json.loads(last.read_text())["epoch"] if last.exists() else 0
        _note(journal, "start", number, epoch)
        ending = None
        first = min(config["epochs"] + 1, epoch) or 1  # as search.cluster.trainable has it
        for former in range(first, epoch + 1):
            report = lifelike_report(number, former, EPOCHS)
            ending = report["ending"]
            yield report
        while ending is None:
            epoch += 1
            _note(journal, "begin", number, epoch)
            time.sleep(EPOCH_SECONDS)
            while hold.exists():
                time.sleep(0.02)
            report = lifelike_report(number, epoch, EPOCHS)
            ending = report["ending"]
            new = last.with_suffix(".new")
            new.write_text(json.dumps({"epoch": epoch}))
            new.replace(last)
            (folder / "best" / "checkpoint.json").write_text("{}")
            _note(journal, "epoch", number, epoch)
            yield report


def _note(journal: Path, event: str, number: int, epoch: int) -> None:
    line = json.dumps([event, number, epoch, os.getpid(), time.time()]) + "\n"
    file = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode())
    os.close(file)


def run_command(arguments: list[str], faults: list[str]) -> int:
    """Run the command with the stand-in; return its exit status.

    Args:
        faults: of this process: ``no locks`` (of the file system), ``jumping clock``. No faults, but other
            stand-ins: ``trains``: trials really train; ``no Ray``: trials take turns in the driver itself.
    """
    import search.cluster.connect
    import search.cluster.driver
    import search.cluster.preflight
    import search.views.gallery
    from search.run import main
    from search.sampling import proposer

    if "trains" not in faults:
        search.cluster.driver.CellTrainable = StandIn
        search.views.gallery.write_overlays = lambda study, data: study.store.folder  # there is no model
    search.cluster.preflight.IMPORTS = ["cellseg"]  # the rest takes seconds
    proposer.NUM_RANDOM = 10**9  # what the model would propose depends on the moment at which it is asked
    if "no Ray" in faults:
        search.cluster.connect.ray_cluster = lambda address: nullcontext("")  # type: ignore[assignment,return-value]
        search.cluster.driver.run_study = _take_turns  # type: ignore[assignment]
    if "no locks" in faults:
        fcntl.flock = _no_locks
    if "jumping clock" in faults:
        _let_clock_jump()
    return main(arguments)


def _take_turns(study: Any, *_: Any, on_event: Callable[[], None], on_leave: Callable[[], None], **__: Any) -> bool:
    """Do what :func:`search.cluster.driver.run_study` does, with trials that run in this process, an epoch each."""
    from search.cluster.scratch import scratch_folder
    from search.cluster.signals import stop_on_signals

    trials: dict[int, Iterator[dict[str, Any]]] = {}
    with study.store.buffered(1.0), scratch_folder(), stop_on_signals(study.interrupt, on_leave):
        while not study.must_stop:
            while len(trials) < study.experiment.max_slots and (proposal := study.propose()) is not None:
                place = {"study": study.name, "number": proposal.number, "folder": str(proposal.folder)}
                trials[proposal.number] = StandIn._fit(None, place | {"epochs": proposal.epochs})
            if not trials:
                break
            number = min(trials, key=lambda trial: (study.store.trial(trial).epochs, trial))
            report = next(trials[number])
            with study.store.held():
                goes_on = study.report(number, report, "here")
                if report["ending"] is not None:
                    study.end(number, report["ending"])
            if not goes_on:
                del trials[number]
            study.flush()
            on_event()
    study.interrupt()
    return study.is_over


def _no_locks(*_: Any) -> NoReturn:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


def _let_clock_jump() -> None:
    """Let the wall clock of this process jump by up to a day, forwards or backwards, at every hundredth look."""
    real, jumps, looks = time.time, random.Random(0), itertools.count()
    offset = 0.0

    def jumping() -> float:
        nonlocal offset
        if next(looks) % 100 == 99:
            offset = jumps.uniform(-86400, 86400)
        return real() + offset

    time.time = jumping


def serve() -> None:
    """Fork a process for every line on standard input; tell its number, and later how it ended.

    A line is a JSON dict: ``arguments``, ``faults``, ``folder`` (working directory), ``log`` (file for its output).
    """
    import optuna  # noqa: F401
    import ray  # noqa: F401
    import torch  # noqa: F401
    from ray import tune  # noqa: F401

    import search.cluster.driver
    import search.cluster.node_watch
    import search.prepare
    import search.run
    import search.views.board
    import search.views.gallery  # noqa: F401

    _tell("ready", 0, 0)
    running: set[int] = set()
    buffer = b""
    while True:
        if select.select([0], [], [], 0.02)[0]:
            if not (data := os.read(0, 65536)):
                for pid in running:
                    os.killpg(pid, signal.SIGKILL)
                return
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                wanted = json.loads(line)
                if (pid := os.fork()) == 0:
                    _become(wanted)
                running.add(pid)
                _tell("started", pid, 0)
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            running.discard(pid)
            _tell("ended", pid, os.waitstatus_to_exitcode(status))


def _become(wanted: dict[str, Any]) -> NoReturn:
    status = 1
    try:
        os.setsid()
        os.chdir(wanted["folder"])
        log = os.open(wanted["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for file in (1, 2):
            os.dup2(log, file)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["search.run", *wanted["arguments"]]
        status = run_command(wanted["arguments"], wanted["faults"])
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def _tell(event: str, pid: int, status: int) -> None:
    os.write(1, (json.dumps([event, pid, status]) + "\n").encode())


if __name__ == "__main__":
    from tests.faults import stand_in  # trials import the class from there

    stand_in.serve()
