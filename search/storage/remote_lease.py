"""A lease on a study in an object store: an object that its holder writes again every few seconds.

The rules are those of :mod:`search.storage.lease`. Creating the object is one conditional write: of two who try, one
succeeds.
"""

import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellseg.errors import Notice
from cellseg.files import StorageError
from search.storage import lease
from search.storage.lease import LEASE, Content, holding, taken
from search.storage.remote import Remote


@contextmanager
def leased_remotely(remote: Remote, folder: Path, study: str) -> Iterator[None]:
    """Hold the lease for the time of the block.

    Args:
        remote: the study's.
        folder: its local folder, which nothing writes to once the lease is lost.
        study: the study's name, for messages.

    Raises:
        UserError: another process holds it, or the store cannot be used.
    """
    own = Content.own()
    while not remote.create(own.text(0), LEASE):
        if (holder := _holder(remote)) is not None:
            raise taken(study, holder)
    held = _RemoteLease(remote, own)
    with holding(folder / LEASE, held):
        try:
            yield
        finally:
            held.release()


def _holder(remote: Remote) -> str | None:
    """Say who holds the lease; None if nobody does. The object of a dead holder is gone then."""
    content = remote.read(LEASE)
    if content is None:
        return None
    holder = Content.parse(content)
    if not holder.is_dead:
        seconds = lease.BEAT_SECONDS * lease.MISSED_BEATS
        warnings.warn(
            f"{remote.uri}: {holder.name} worked here. Watching for up to {seconds:.0f} s whether it still does.",
            Notice,
            stacklevel=3,
        )
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(lease.BEAT_SECONDS / 5)
            if (now := remote.read(LEASE)) is None:
                return None
            if now != content:
                return Content.parse(now).name
    if remote.read(LEASE) == content:
        remote.remove([LEASE])
    return None


class _RemoteLease:
    """A lease that this process holds. A thread writes the object."""

    def __init__(self, remote: Remote, content: Content):
        self._remote, self._content = remote, content
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._keep_beating, name="lease", daemon=True)
        self._thread.start()

    def holder(self) -> bytes | None:
        """The object as it is now; None if it is gone."""
        return self._remote.read(LEASE)

    def is_mine(self) -> bool:
        """Whether the object names this holder. A store that does not answer is given the benefit of the doubt: nothing
        can be written there either."""
        try:
            content = self.holder()
        except StorageError:
            return True
        return content is not None and Content.parse(content).token == self._content.token

    def release(self) -> None:
        """Stop beating and remove the object, unless it is another's by now or the store is gone."""
        self._stopped.set()
        self._thread.join()
        try:
            if self.is_mine():
                self._remote.remove([LEASE])
        except StorageError:
            pass  # it is free in half a minute

    def _keep_beating(self) -> None:
        beat = 0
        while not self._stopped.wait(lease.BEAT_SECONDS):
            beat += 1
            try:
                if self.is_mine():
                    self._remote.put_bytes(self._content.text(beat), LEASE)
            except StorageError:
                pass  # the next beat tries again, and the tables' next write tells the user
