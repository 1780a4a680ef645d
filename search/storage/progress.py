"""The progress of trials within an epoch, ``results/<study>/progress/t0007.json``, for people who watch.

The process that trains writes it every two seconds, and whoever sees the study's folder reads it. Nothing depends on
it: it is neither durable nor part of the tables, and is gone when the trial has ended.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

WRITE_SECONDS = 2.0
FOLDER = "progress"


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a running trial is."""

    phase: Literal["starting", "training", "validating"]
    epoch: int = 0
    """The epoch that is trained or validated, from 1; 0 while the trial starts."""
    done: int = 0
    """Batches of it that are trained."""
    total: int = 0
    """Batches of the epoch; 0 if that is not known yet."""
    epoch_seconds: float = 0.0
    """Time since the epoch began, by the clock of the process that trains."""
    images_per_second: float | None = None
    """Of this epoch so far."""
    memory_bytes: int | None = None
    """Most memory so far: allocated on the GPU, or resident on a CPU."""
    device: str = ""
    """``cpu`` or the GPU's name."""

    @property
    def share(self) -> float:
        """Share of the epoch's training that is done, in [0, 1]."""
        return self.done / self.total if self.total else 0.0


class ProgressWriter:
    """Follows one trial, batch by batch, and writes what it sees. A file that cannot be written is left out, as it is
    where nobody has called :func:`open_progress`.

    Args:
        checkpoints: folder of the trial's checkpoints, in that of the study.
        batch_size: images of a batch.
        measure: the device and the most memory so far in bytes.
    """

    def __init__(
        self,
        checkpoints: Path,
        batch_size: int,
        measure: Callable[[], tuple[str, int | None]] = lambda: ("", None),
        clock: Callable[[], float] = time.monotonic,
    ):
        self._path = checkpoints.parent.parent / FOLDER / f"{checkpoints.name}.json"
        self._batch_size, self._measure, self._clock = batch_size, measure, clock
        self._now = Progress(phase="starting")
        self._began = self._written = clock()
        self._write()

    def continue_from(self, epoch: int) -> None:
        """Take in that so many epochs were trained before."""
        self._now = replace(self._now, epoch=epoch)

    def step(self, done: int, total: int) -> None:
        """Take in a trained batch, as ``on_step`` of :func:`cellseg.training.fit.fit` tells it."""
        now, former = self._clock(), self._now
        # An epoch that begins again before it was through is the same one: training restarts if memory runs out.
        is_next = former.phase != "training" if done == 1 else former.epoch == 0
        if done == 1 or is_next:
            self._began = now
        seconds = now - self._began
        # The clock starts with the first batch, whose own time is not known.
        speed = (done - 1) * self._batch_size / seconds if done > 1 and seconds > 0 else former.images_per_second
        self._now = replace(
            former,
            phase="validating" if done == total else "training",
            epoch=former.epoch + is_next,
            done=done,
            total=total,
            epoch_seconds=seconds,
            images_per_second=speed,
        )
        if done in {1, total} or now - self._written >= WRITE_SECONDS:
            self._written = now
            self._write()

    def close(self) -> None:
        """Remove the file: the trial has ended, or another process goes on with it."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _write(self) -> None:
        device, memory = self._measure()
        self._now = replace(self._now, device=device, memory_bytes=memory)
        with suppress(OSError):
            temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            temporary.write_text(json.dumps(asdict(self._now)), encoding="utf-8")
            temporary.replace(self._path)


def read_progress(study: Path, number: int) -> Progress | None:
    """Return where a running trial is; None if its process has not told, or in another version's words.

    Args:
        study: the study's folder.
    """
    try:
        text = (study / FOLDER / f"t{number:04d}.json").read_text(encoding="utf-8")
        return Progress(**json.loads(text))
    except (OSError, ValueError, TypeError):
        return None


@contextmanager
def open_progress(study: Path) -> Iterator[None]:
    """For the time of the block, let processes write; before and after it, remove what killed ones have left."""
    shutil.rmtree(study / FOLDER, ignore_errors=True)
    with suppress(OSError):
        (study / FOLDER).mkdir()
    try:
        yield
    finally:
        shutil.rmtree(study / FOLDER, ignore_errors=True)
