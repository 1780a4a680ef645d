"""Folders of an object store, by URI: ``--results s3://bucket/prefix``.

The store holds a study in the layout of a folder. A process works on local files, as for any other study: it fetches
what it needs, and each file that it writes is put into the store at once, as one object. An object is there as a whole
or not at all, and there is no renaming. So what is put last decides what counts: a checkpoint's description, a table.

Any file system that fsspec knows will do (``gs://``, ``az://``, ``file://``); its package must be installed.
"""

import atexit
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cellseg.errors import UserError, first_line
from cellseg.files import StorageError, atomic_path

MARKER = ".storage"
"""File in a local folder of results that holds the URI of what it stands for."""
CACHE = "CELLSEG_SEARCH_CACHE"
"""Environment variable: the folder of local copies. Default: ``~/.cache/cellseg-search``."""
_PACKAGES = {"s3": "'cellseg-search[s3]'", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
"""What pip installs for a protocol."""
_OPTIONS: dict[str, dict[str, Any]] = {
    # The library waits a minute for each of several attempts otherwise.
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 2}}},
    "file": {"auto_mkdir": True},
}


def is_uri(results: Path | str) -> bool:
    """Say whether ``--results`` names an object store and not a folder."""
    return "://" in str(results)


def working_folder(results: str) -> Path:
    """Return the local folder for the one command that writes studies there; of a plain path that path.

    It stays when the command ends, with data that were generated, but what is in the store counts.
    """
    if not is_uri(results):
        return Path(results)
    uri = results.rstrip("/")
    name = re.sub(r"[^A-Za-z0-9]+", "-", uri)[-40:].strip("-")
    cache = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "cellseg-search")
    return _marked(cache / f"{name}-{hashlib.sha256(uri.encode()).hexdigest()[:8]}", uri)


def reading_folder(results: str) -> Path:
    """Return a local folder for reading studies, gone when the process ends; of a plain path that path."""
    if not is_uri(results):
        return Path(results)
    folder = tempfile.mkdtemp(prefix="cellseg-search-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return _marked(Path(folder), results.rstrip("/"))


def _marked(folder: Path, uri: str) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MARKER).write_text(uri, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{folder}: local copies must be writable, but got '{error.strerror}'. Set {CACHE} to another folder."
        ) from error
    return folder


def remote_results(results: Path) -> "Remote | None":
    """Return what a local folder of results stands for; None if for nothing but itself."""
    try:
        return Remote((results / MARKER).read_text(encoding="utf-8"))
    except OSError:
        return None


def remote_study(folder: Path) -> "Remote | None":
    """Return what a local folder of a study stands for; None if for nothing but itself."""
    results = remote_results(folder.parent)
    return None if results is None else results.below(folder.name)


class Remote:
    """A folder of an object store.

    Every method raises a :class:`cellseg.files.StorageError` in a line if the store cannot be used.
    """

    def __init__(self, uri: str, _parent: "Remote | None" = None):
        self.uri = uri.rstrip("/")
        self._seen: set[str] = _parent._seen if _parent else set()
        """Buckets that are there."""
        protocol = self.uri.partition("://")[0]
        self._is_local = protocol == "file"
        with self._told():
            import fsspec

            options = _OPTIONS.get(protocol, {})
            self._fs: Any = _parent._fs if _parent else fsspec.filesystem(protocol, use_listings_cache=False, **options)
            self._root = self._fs._strip_protocol(self.uri)

    def below(self, *names: str) -> "Remote":
        """Return a folder in this one."""
        return Remote("/".join((self.uri, *names)), self)

    def put(self, path: Path, name: str) -> None:
        """Put a local file there under a name, in place of what has it; at once for whoever reads."""
        with self._told():
            if self._is_local:
                with atomic_path(Path(self._at(name))) as temporary:
                    shutil.copyfile(path, temporary)
            else:
                self._fs.put_file(str(path), self._at(name))

    def put_bytes(self, content: bytes, name: str) -> None:
        """Put some bytes there under a name, in place of what has it."""
        with self._told():
            if self._is_local:
                with atomic_path(Path(self._at(name))) as temporary:
                    temporary.write_bytes(content)
            else:
                self._fs.pipe_file(self._at(name), content)

    def create(self, content: bytes, name: str) -> bool:
        """Put some bytes there under a name that is free; return whether it was. Of several who try one succeeds."""
        with self._told():
            try:
                if self._is_local:
                    Path(self._at(name)).parent.mkdir(parents=True, exist_ok=True)
                    with Path(self._at(name)).open("xb") as file:
                        file.write(content)
                else:
                    if self._fs.exists(self._at(name)):  # also for a store without conditional writes
                        return False
                    self._fs.pipe_file(self._at(name), content, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if "PreconditionFailed" in str(error) or "pre-conditions" in str(error):
                    return False
                raise
        return True

    def copy(self, name: str, other: str) -> None:
        """Put what is there under a name under another one too; it does not travel."""
        with self._told():
            self._fs.cp_file(self._at(name), self._at(other))

    def read(self, name: str) -> bytes | None:
        """Return what is there under a name; None if nothing is."""
        with self._told():
            try:
                return self._fs.cat_file(self._at(name))
            except FileNotFoundError:
                self._require_bucket()
                return None

    def exists(self, name: str) -> bool:
        """Return whether there is something under a name."""
        with self._told():
            there = self._fs.isfile(self._at(name))
            if not there:
                self._require_bucket()
            return there

    def get(self, name: str, path: Path) -> None:
        """Make a local file of what is there under a name; a file of that path is replaced in one step."""
        with self._told(), atomic_path(path) as temporary:
            self._fs.get_file(self._at(name), str(temporary))

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Return the names below a prefix, which is a name or a folder's, with their sizes in bytes."""
        with self._told():
            try:
                found = self._fs.find(self._at(prefix), detail=True)
            except FileNotFoundError:
                found = {}
            if not found:
                self._require_bucket()
            return {path[len(self._root) + 1 :]: int(info["size"]) for path, info in found.items()}

    def folders(self) -> list[str]:
        """Return the names of the folders in this one."""
        with self._told():
            try:
                found = self._fs.ls(self._root, detail=True)
            except FileNotFoundError:
                self._require_bucket()
                return []
            return sorted(Path(info["name"]).name for info in found if info["type"] == "directory")

    def remove(self, names: Collection[str]) -> None:
        """Remove what is there under some names, if it is."""
        with self._told():
            for name in names:
                with suppress(FileNotFoundError):
                    self._fs.rm_file(self._at(name))

    def remove_folder(self, prefix: str = "") -> None:
        """Remove all that is in a folder."""
        self.remove(self.sizes(prefix))

    def fetch(self, prefix: str, folder: Path) -> None:
        """Make a local folder equal to one there; ``checkpoint.json`` comes last."""
        names = sorted(self.sizes(prefix), key=lambda name: (name.endswith(".json"), name))
        shutil.rmtree(folder, ignore_errors=True)
        for name in names:
            self.get(name, folder / name[len(prefix) + 1 :])

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _require_bucket(self) -> None:
        """Raise FileNotFoundError if there is not even the bucket: nothing in it looks the same."""
        bucket = self._root.partition("/")[0]
        if self._is_local or bucket in self._seen:
            return
        if hasattr(self._fs, "call_s3"):
            self._fs.call_s3("head_bucket", Bucket=bucket)
        else:
            self._fs.ls(bucket, detail=False)
        self._seen.add(bucket)

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> UserError:
        """Say in a line what an error of the store means, and what to do."""
        protocol = self.uri.partition("://")[0]
        kinds = {kind.__name__ for kind in type(error).__mro__}
        text = first_line(error).rstrip(".")
        if isinstance(error, ImportError):
            package = _PACKAGES.get(protocol, f"fsspec's package for {protocol}")
            return UserError(f"{self.uri}: a package must be installed, but got '{text}'. Run pip install {package}.")
        if isinstance(error, ValueError) and "Protocol not known" in text:
            return UserError(f"{self.uri}: must be a folder, s3:// or gs://, but got '{protocol}://'. Check the URI.")
        if kinds & {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"}:
            law, remedy = "credentials must be at hand", "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
        elif isinstance(error, PermissionError):
            law, remedy = "must be accessible", "Check the credentials and what they allow"
        elif isinstance(error, FileNotFoundError):
            law, remedy = "the bucket must exist", "Create it, or check the name"
        else:
            law, remedy = "must be reachable", "Check the network and the endpoint (AWS_ENDPOINT_URL)"
        return StorageError(f"{self.uri}: {law}, but got '{text}'. {remedy}, then run the same command again.")
