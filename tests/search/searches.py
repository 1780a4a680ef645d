"""Searches that tests start as people do, and whose processes they can find again."""

import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Workplace:
    """A folder with a space file, in which commands run as people run them."""

    folder: Path
    output: str = ""
    """What the first search printed."""

    def command(self, module: str, *arguments: str) -> list[str]:
        return [sys.executable, "-m", module, *arguments]

    def run(self, module: str, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
        return subprocess.run(
            self.command(module, *arguments), cwd=cwd or self.folder, capture_output=True, text=True, timeout=400
        )


class Search:
    """A search in a process of its own. Everything it starts carries a mark in its environment."""

    def __init__(self, place: Workplace, *arguments: str):
        self.mark = uuid.uuid4().hex
        self.output = place.folder / f"{self.mark}.log"
        with self.output.open("w") as file:
            self.process = subprocess.Popen(
                place.command("search.run", "tiny cells.yaml", *arguments),
                cwd=place.folder,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"SEARCH_TEST_MARK": self.mark},
                start_new_session=True,
            )

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 300
        while text not in self.output.read_text():
            assert self.process.poll() is None and time.monotonic() < deadline, self.output.read_text()
            time.sleep(0.1)

    def end(self, sent: signal.Signals) -> int:
        self.process.send_signal(sent)
        return self.process.wait(120)

    def left_over(self, seconds: float = 120) -> list[str]:
        """Processes that it started and that are still there after a while: Ray's agents look for their master now
        and then."""
        deadline = time.monotonic() + seconds
        while (names := self._children()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return names

    def owns(self, pid: int) -> bool:
        """Whether a process is the search, or was started by it."""
        try:
            return self.mark.encode() in Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            return False  # it ended, or it is not ours

    def _children(self) -> list[str]:
        names = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.owns(int(folder.name)):
                    names.append((folder / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return names
