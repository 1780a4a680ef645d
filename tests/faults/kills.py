"""A running study that is killed at random moments, again and again: ``python -m tests.faults.kills --kills 100``.

The driver is the real command on a Ray that outlives it; after each kill the same command is started again. One kill in
four hits the processes of the trials instead, while the driver goes on. At the end it prints what was lost.
"""

import argparse
import json
import math
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "search"))  # fakes

from tests.faults.harness import (
    Bench,
    Command,
    Commands,
    Onlooker,
    require_whole,
    scratch_folders,
    wait_until,
)
from tests.faults.machines import Machines, machines

SLOTS = 2
TRIALS = {"Ray": 150, "no Ray": 30}
"""So many that a study takes longer than the start of a driver: without Ray, trials take turns."""


@dataclass
class Tally:
    """What the kills cost."""

    seed: int
    deadline: float = math.inf
    driver_kills: int = 0
    worker_kills: int = 0
    studies: int = 0
    finished_trials: int = 0
    finished_trials_lost: int = 0
    epochs: int = 0
    epochs_repeated: int = 0
    epochs_unwritten: int = 0
    """Trained again, of trials that began after the tables were last written, a second before a kill."""
    most_epochs_of_a_trial_repeated_by_a_kill: int = 0
    orphan_processes: int = 0
    leaked_files: list[str] = field(default_factory=list)
    seconds_to_next_epoch: list[float] = field(default_factory=list)
    """After a driver was killed: until an epoch ends under the next one."""

    @property
    def kills(self) -> int:
        return self.driver_kills + self.worker_kills

    @property
    def is_late(self) -> bool:
        return time.monotonic() > self.deadline

    @property
    def is_clean(self) -> bool:
        lost = self.finished_trials_lost or self.most_epochs_of_a_trial_repeated_by_a_kill > 1
        return not (lost or self.orphan_processes or self.leaked_files)

    def describe(self) -> str:
        seconds = self.seconds_to_next_epoch or [0.0]
        return "\n".join(
            [
                f"kills at random moments: {self.kills} ({self.driver_kills} of the driver, {self.worker_kills} of all "
                f"processes of trials), {self.studies} studies with {SLOTS} slots, seed {self.seed}",
                f"finished trials lost: {self.finished_trials_lost} of {self.finished_trials}",
                f"epochs trained again: {self.epochs_repeated} of {self.epochs}, of one trial at most "
                f"{self.most_epochs_of_a_trial_repeated_by_a_kill} a kill; {self.epochs_unwritten} more of trials that "
                "began in the second before a kill",
                f"orphan processes: {self.orphan_processes}",
                f"leaked files: {len(self.leaked_files)} {self.leaked_files}",
                f"seconds from the kill of a driver to the next epoch: median {statistics.median(seconds):.1f}, "
                f"at most {max(seconds):.1f}",
            ]
        )


def run_kills(
    kills: int,
    seed: int,
    folder: Path,
    cluster: Machines | None,
    commands: Commands,
    *,
    minutes: float = math.inf,
) -> Tally:
    """Kill studies so many times in all, but not for longer than so many minutes; each study is finished before the
    next begins.

    Args:
        cluster: None: trials run in the driver itself.
    """
    tally, moments = Tally(seed, time.monotonic() + 60 * minutes), random.Random(seed)
    while tally.kills < kills and not tally.is_late:
        settings = ("--set", "asha=false", "--trials", str(_num_trials(cluster)))
        bench = Bench(folder, cluster, commands, study=f"kills{tally.studies}", slots=SLOTS, settings=settings)
        _kill_until_over(bench, kills, moments, tally)
        tally.studies += 1
    return tally


def _num_trials(cluster: Machines | None) -> int:
    return TRIALS["no Ray" if cluster is None else "Ray"]


def _kill_until_over(bench: Bench, kills: int, moments: random.Random, tally: Tally) -> None:
    onlooker = Onlooker(bench)
    driver = bench.start()
    # The time from the start to the first epoch, within which half of the kills fall.
    bench.wait_for_epochs(1, driver)
    startup = time.monotonic() - driver.started
    while driver.status is None:
        if tally.kills >= kills or tally.is_late:
            driver.wait(3600)
            break
        moment = moments.uniform(0, 2 * startup)
        wait_until(lambda: driver.status is not None or time.monotonic() - driver.started > moment, "the moment comes")  # noqa: B023
        if driver.status is not None:
            break
        onlooker.look()
        if moments.randrange(4) == 0 and (workers := bench.workers()):
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            tally.worker_kills += 1
            bench.wait_for_epochs(bench.num_trained() + 2 * SLOTS, driver)
            if driver.status is not None:
                break
            driver.started = time.monotonic() - startup  # the next moment is drawn as for a new driver
        else:
            driver = _kill_driver(bench, driver, onlooker, tally)
        onlooker.look()
        most = max(onlooker.repeated.values(), default=0)
        tally.most_epochs_of_a_trial_repeated_by_a_kill = max(tally.most_epochs_of_a_trial_repeated_by_a_kill, most)
    if driver.status != 0:
        driver = bench.finish()
    onlooker.look()
    require_whole(bench, _num_trials(bench.machines))
    tally.finished_trials += len(onlooker.ended)
    tally.finished_trials_lost += len(onlooker.lost)
    tally.epochs += len(bench.begun())
    tally.epochs_repeated += onlooker.num_repeated
    tally.epochs_unwritten += onlooker.num_unwritten
    try:
        wait_until(lambda: not bench.workers(), "the processes of trials end", 60)
    except AssertionError:
        tally.orphan_processes += len(bench.workers())
    tally.leaked_files += bench.leaks() + scratch_folders({command.pid for command in bench.started})


def _kill_driver(bench: Bench, driver: Command, onlooker: Onlooker, tally: Tally) -> Command:
    """Kill the driver, start the next, and wait for its first epoch, unless it ends without one."""
    driver.send(signal.SIGKILL)
    killed = time.time()
    driver.wait()
    tally.driver_kills += 1
    onlooker.look()
    following = bench.start()

    def first_epoch() -> float | None:
        starts = [time_ for event, _, _, _, time_ in bench.journal() if event == "start" and time_ > killed]
        if not starts:
            return None
        return next((time_ for event, *_, time_ in bench.journal() if event == "epoch" and time_ > starts[0]), None)

    wait_until(lambda: first_epoch() or following.status is not None, f"the study goes on\n{following.output}")
    if (came := first_epoch()) is not None:
        tally.seconds_to_next_epoch.append(came - killed)
    return following


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=math.inf, help="no more kills after so long")
    parser.add_argument("--without-ray", action="store_true", help="trials run in the driver itself")
    parser.add_argument("--json", type=Path, help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        os.environ["CELLSEG_CACHE"] = f"{folder}/cache"
        with nullcontext() if arguments.without_ray else machines() as cluster:
            if cluster is not None:
                cluster.add(num_cpus=SLOTS)
            commands = Commands(cluster)
            try:
                tally = run_kills(
                    arguments.kills, arguments.seed, Path(folder), cluster, commands, minutes=arguments.minutes
                )
            finally:
                commands.close()
    sys.stdout.write(tally.describe() + "\n")
    if arguments.json:
        arguments.json.write_text(json.dumps(asdict(tally)))
    return 0 if tally.is_clean else 1


if __name__ == "__main__":
    sys.exit(main())
