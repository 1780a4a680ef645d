"""The proof that nodes and driver see the same folder of results.

The driver leaves a file with a random token there. A node has to find it, and to leave one that the driver finds.
Without that, trials would write their checkpoints onto a disk that nobody looks at.
"""

import platform
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ray.experimental import internal_kv

from cellseg.errors import Problem, UserError
from search.cluster.node_facts import marker_error
from search.cluster.slots import name_of

PROOFS = ".nodes"
"""Folder of the files, below that of the results; it is there while a search runs."""
REMEDY = "Put --results on a disk that all machines mount under the same path (NFS, Lustre, a cloud's file storage)."
_NAMESPACE = b"cellseg-search"


@dataclass(frozen=True)
class SharedFolder:
    """A folder that every node must see. ``token`` is the content of all files, and new with every search; without one,
    nothing is proved."""

    folder: Path
    token: str

    @property
    def marker(self) -> str:
        """The driver's file, relative to the folder. Its name is new: no cache holds it as absent."""
        return f"{PROOFS}/driver-{self.token[:16]}"

    def file_of(self, node_id: str) -> str:
        """Return a node's file, relative to the folder."""
        return f"{PROOFS}/{node_id}-{self.token[:16]}"

    def error_of(self, node_id: str) -> str | None:
        """Return why the driver does not see what a node wrote; None if it does."""
        return marker_error(self.folder / self.file_of(node_id), self.token)


@contextmanager
def shared_folder(folder: Path) -> Iterator[SharedFolder]:
    """Leave the driver's file in an existing folder for the time of the block, and let trials know of it.

    Raises:
        UserError: the folder cannot be written.
    """
    shared = SharedFolder(folder.resolve(), secrets.token_hex(32))
    proofs = shared.folder / PROOFS
    try:
        proofs.mkdir(exist_ok=True)
        (shared.folder / shared.marker).write_text(shared.token)
    except OSError as error:
        raise UserError(
            Problem(str(folder), "the folder must be writable", f"'{error.strerror}'", "Choose another --results DIR.")
        ) from error
    key = _key(shared.folder)
    internal_kv._internal_kv_put(key, shared.token, overwrite=True, namespace=_NAMESPACE)
    try:
        yield shared
    finally:
        shutil.rmtree(proofs, ignore_errors=True)
        with suppress(Exception):  # the cluster may be gone
            internal_kv._internal_kv_del(key, namespace=_NAMESPACE)


@contextmanager
def own_folders() -> Iterator[SharedFolder]:
    """Yield what nodes need who share no folder, as their study is in an object store: space for local copies."""
    yield SharedFolder(Path(tempfile.gettempdir()), "")


def require_shared_folder(folder: Path) -> None:
    """Raise UserError if this process cannot see what the driver wrote into ``folder``. For the processes of trials,
    before the first one; nothing is asked for where the driver shares nothing."""
    import ray

    if not internal_kv._internal_kv_initialized():
        return
    token = internal_kv._internal_kv_get(_key(folder), namespace=_NAMESPACE)
    if token is None:
        return
    shared = SharedFolder(folder, token.decode())
    if (error := marker_error(folder / shared.marker, shared.token)) is not None:
        name = name_of(platform.node(), ray.get_runtime_context().get_node_id())
        raise UserError(unshared(name, folder, error))


def unshared(node: str, folder: Path, evidence: str) -> Problem:
    """Make the problem of a node that sees another folder than the driver."""
    return Problem(f"node {node}", f"must see the folder of results {folder} as the driver does", evidence, REMEDY)


def _key(folder: Path) -> bytes:
    return f"shared folder {folder}".encode()
