"""The temporary folder of a search."""

import subprocess
import sys
import tempfile
from pathlib import Path

from cellseg.owners import owner_mark
from search.cluster.scratch import scratch_folder


def test_what_killed_searches_left_is_swept_and_what_others_use_is_not(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    script = "import cellseg.owners; print(cellseg.owners.owner_mark())"
    dead = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100).stdout.strip()
    for name in (f"search-{dead}-abc_1", f"search-{owner_mark()}-x1", "search-1-elsewhere-x1", "search-x1", "other"):
        (tmp_path / name / "inner").mkdir(parents=True)
    with scratch_folder() as folder:
        assert Path(folder).parent == tmp_path
        assert Path(folder).name.startswith(f"search-{owner_mark()}-")
        left = {path.name for path in tmp_path.iterdir()} - {Path(folder).name}
        assert left == {f"search-{owner_mark()}-x1", "search-1-elsewhere-x1", "search-x1", "other"}
    assert not Path(folder).exists()
