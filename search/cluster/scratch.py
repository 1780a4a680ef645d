"""The folder of Ray Tune's own record of an experiment, which nobody reads: temporary, and in the end removed."""

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cellseg.owners import is_gone, owner_mark

PREFIX = "search-"


@contextmanager
def scratch_folder() -> Iterator[str]:
    """A folder for the time of the block. Those that killed searches of this machine left are removed first."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner = re.fullmatch(rf"{PREFIX}(.+)-[^-]*", folder.name)
        if owner is not None and is_gone(owner[1]):
            shutil.rmtree(folder, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f"{PREFIX}{owner_mark()}-", ignore_cleanup_errors=True) as folder_name:
        yield folder_name
