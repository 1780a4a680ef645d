"""What the tests of faults share: commands on a Ray that outlives its drivers, and what must hold afterwards."""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from search.storage.store import StudyStore
from search.storage.tables import UNFINISHED, EpochRow, TrialRow
from tests.faults.machines import PATIENCE, RAY_SETTINGS, REPOSITORY, Machines
from tests.faults.stand_in import STUDY, TRIALS, hold_of, journal_of


def wait_until(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """Wait for a condition; return what it gave."""
    deadline = time.monotonic() + seconds
    while not (given := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)
    return given


class Command:
    """A command that was started: a process in a session of its own."""

    def __init__(self, pid: int, log: Path):
        self.pid, self.log = pid, log
        self.started = time.monotonic()
        self.status: int | None = None

    def send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, seconds: float = PATIENCE) -> int:
        wait_until(lambda: self.status is not None, f"the command ends\n{self.output}", seconds)
        assert self.status is not None
        return self.status

    @property
    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""


class Commands:
    """The process of :mod:`tests.faults.stand_in`, and the commands that it started."""

    def __init__(self, machines: Machines | None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.stand_in"],
            cwd=REPOSITORY,
            env=os.environ | (RAY_SETTINGS if machines is None else machines.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._running: dict[int, Command] = {}
        self._logs: list[Path] = []
        self._answered = threading.Condition()
        self._ready = False
        self._started: list[Command] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event, pid, status = json.loads(line)
            with self._answered:
                if event == "ready":
                    self._ready = True
                elif event == "started":
                    command = Command(pid, self._logs.pop(0))
                    self._running[pid] = command
                    self._started.append(command)
                else:
                    self._running.pop(pid).status = status
                self._answered.notify_all()

    def start(self, folder: Path, log: Path, arguments: list[str], faults: tuple[str, ...] = ()) -> Command:
        assert self._process.stdin is not None
        wanted = {"arguments": arguments, "faults": list(faults), "folder": str(folder), "log": str(log)}
        with self._answered:
            assert self._answered.wait_for(lambda: self._ready, PATIENCE)
            self._logs.append(log)
            self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
            self._process.stdin.flush()
            assert self._answered.wait_for(lambda: bool(self._started), PATIENCE)
            return self._started.pop()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(PATIENCE)


@dataclass
class Bench:
    """A folder in which one command runs again and again."""

    folder: Path
    machines: Machines | None
    """None: without Ray."""
    commands: Commands
    study: str = "faults"
    slots: int = 1
    settings: tuple[str, ...] = ()
    """More of the command's arguments."""
    space: str = STUDY
    faults: tuple[str, ...] = ()
    """Of every command, see :func:`tests.faults.stand_in.run_command`."""
    started: list[Command] = field(default_factory=list)

    def __post_init__(self) -> None:
        (self.folder / "faults.yaml").write_text(self.space)

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def place(self) -> Path:
        return self.results / self.study

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold trials within the epochs that they begin, for the time of the block."""
        hold = hold_of(self.results, self.study)
        self.results.mkdir(exist_ok=True)
        hold.touch()
        try:
            yield
        finally:
            hold.unlink()

    def start(self) -> Command:
        """Start the same command as every time."""
        log = self.folder / f"{self.study}-{len(self.started)}.log"
        arguments = ["faults.yaml", "--study", self.study, "--max-slots", str(self.slots), *self.settings]
        faults = self.faults
        if self.machines is None:
            faults = (*faults, "no Ray")
        else:
            arguments += ["--address", self.machines.address]
        self.started.append(self.commands.start(self.folder, log, arguments, faults))
        return self.started[-1]

    def finish(self) -> Command:
        """Run the command until the study is over."""
        command = self.start()
        assert command.wait() == 0, command.output
        return command

    def store(self) -> StudyStore:
        return StudyStore.open(self.place)

    def rows(self) -> list[TrialRow]:
        return self.store().trials() if (self.place / "study.json").exists() else []

    def journal(self) -> list[tuple[str, int, int, int, float]]:
        file = journal_of(self.results, self.study)
        return [tuple(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []

    def begun(self) -> Counter[tuple[int, int]]:
        """How often the training of each (trial, epoch) began."""
        return Counter((number, epoch) for event, number, epoch, _, _ in self.journal() if event == "begin")

    def num_trained(self) -> int:
        """Count the epochs that were trained to their end."""
        return sum(event == "epoch" for event, *_ in self.journal())

    def num_repeated(self) -> int:
        """Count how often an epoch was begun again."""
        return sum(count - 1 for count in self.begun().values())

    def wait_for_epochs(self, count: int, command: Command) -> None:
        """Wait until so many epochs were trained in all, or the command has ended."""
        wait_until(
            lambda: self.num_trained() >= count or command.status is not None,
            f"{count} epochs are trained\n{command.output}",
        )

    def workers(self) -> list[int]:
        """Processes that have a trial of this study."""
        return [pid for pid, title in titles() if title.startswith(f"ray::{self.study}/t")]

    def leaks(self) -> list[str]:
        """Files that only a running search may have, or that a write left half-way."""
        places = [path for path in self.place.rglob("*") if path.name.startswith(".") and path.name != ".lock"]
        places += [path for path in self.place.rglob("*.new") if path.is_file()]
        return sorted(str(path.relative_to(self.folder)) for path in places)


def titles() -> list[tuple[int, str]]:
    """All processes of this machine with their titles."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            found.append((int(folder.name), (folder / "cmdline").read_text(errors="replace").replace("\0", " ")))
    return found


def scratch_folders(pids: set[int]) -> list[str]:
    """Temporary folders that the drivers with these numbers have."""
    folders = Path(tempfile.gettempdir()).glob("search-*")
    return [folder.name for folder in folders if folder.name.split("-")[1] in {str(pid) for pid in pids}]


def tables(store: StudyStore) -> tuple[list[TrialRow], list[EpochRow]]:
    """The tables without times, machines and the folder of the study."""
    rows = []
    for row in store.trials():
        config = {key: value for key, value in json.loads(row.config).items() if key not in PLACES}
        rows.append(replace(row, started=None, ended=None, node="", config=json.dumps(config), **NO_TIMES))
    return rows, [replace(row, seconds=0.0, images_per_second=None, peak_memory_bytes=None) for row in store.epochs()]


PLACES = {"data.root", "model.weights_folder"}
NO_TIMES: dict[str, Any] = {"seconds": 0.0, "gpu_seconds": None, "seconds_per_epoch": None, "peak_memory_bytes": None}


@dataclass
class Onlooker:
    """Reads the tables between two commands, and compares them and what was trained with what it saw before."""

    bench: Bench
    ended: dict[int, TrialRow] = field(default_factory=dict)
    lost: list[int] = field(default_factory=list)
    """Finished trials that are no longer in the tables, or not as they were."""
    repeated: Counter[int] = field(default_factory=Counter)
    """By trial: epochs that were begun again between the last two looks."""
    num_repeated: int = 0
    """The same over all looks."""
    num_unwritten: int = 0
    """Epochs begun again of trials that the tables did not know: they are written at most once a second, and such a
    trial had begun since."""
    _known: set[int] = field(default_factory=set)
    _begun: Counter[tuple[int, int]] = field(default_factory=Counter)

    def look(self) -> None:
        rows, begun = {row.number: row for row in self.bench.rows()}, self.bench.begun()
        self.lost += [number for number, row in self.ended.items() if rows.get(number) != row]
        self.ended |= {number: row for number, row in rows.items() if row.state not in UNFINISHED}
        again = [key for key in (begun - self._begun).elements() if self._begun[key]]
        self.repeated = Counter(number for number, _ in again if number in self._known)
        self.num_repeated += self.repeated.total()
        self.num_unwritten += len(again) - self.repeated.total()
        self._known, self._begun = set(rows), begun


def require_whole(bench: Bench, num_finished: int = TRIALS) -> None:
    """Assert that the study is over and holds every trial and each of its epochs once."""
    store = bench.store()
    rows = store.trials()
    assert [row.number for row in rows] == list(range(len(rows)))
    assert not {row.state for row in rows} & UNFINISHED
    assert sum(row.state in {"COMPLETE", "PRUNED"} for row in rows) == num_finished
    epochs = [(row.trial, row.epoch) for row in store.epochs()]
    assert epochs == [(row.number, epoch) for row in rows for epoch in range(1, row.epochs + 1)]


def require_clean(bench: Bench) -> None:
    """Assert that nothing of the study runs any more, and that nothing but results is left."""
    wait_until(lambda: not bench.workers(), "the processes of trials end", 60)
    assert scratch_folders({command.pid for command in bench.started}) == []
    assert bench.leaks() == []
