"""What happens to files when storage fails, and what is on the disk when."""

import errno
import os
import pickle
import stat
from pathlib import Path

import pytest
import torch
from small_disk import run_on_small_disk

from cellseg.errors import UserError
from cellseg.files import StorageError, atomic_path, is_storage_error, storage_error, write_json


def wrapped(number: int) -> Exception:
    """As torch does: the system's error stands behind one about something else."""
    error = RuntimeError("[enforce fail at inline_container.cc:671] . unexpected pos 704 vs 598")
    error.__context__ = OSError(number, os.strerror(number))
    return error


def caused(number: int) -> Exception:
    error = UserError("weights: must be a readable file.")
    error.__cause__ = OSError(number, os.strerror(number))
    return error


FAILING = [errno.ENOSPC, errno.EIO, errno.ESTALE, errno.EDQUOT, errno.EROFS, errno.ENOTCONN]


@pytest.mark.parametrize("number", FAILING)
@pytest.mark.parametrize("make", [lambda number: OSError(number, "text"), wrapped, caused])
def test_errors_of_storage_are_told_by_their_number_wherever_they_are_in_the_chain(make, number):
    assert is_storage_error(make(number))
    told = storage_error(make(number), Path("/results/a"))
    assert isinstance(told, UserError)
    assert str(told).startswith(f"/results/a: must be writable, but got '{os.strerror(number)}'. ")
    assert str(told).endswith(", then run the same command again.")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOENT, "No such file"),
        OSError(errno.EACCES, "Permission denied"),
        OSError("No space left on device"),
        RuntimeError("No space left on device"),
        wrapped(errno.ENOENT),
        caused(errno.EISDIR),
        UserError("optim.lr: must be small, but got 5."),
    ],
)
def test_other_errors_are_somebodys(error):
    assert not is_storage_error(error)


def test_an_error_that_hides_what_stood_behind_it_is_taken_at_its_word():
    try:
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError:
            raise KeyError("x") from None
    except KeyError as error:
        assert not is_storage_error(error)


def test_an_error_of_storage_stays_one_in_another_process():
    error = pickle.loads(pickle.dumps(storage_error(OSError(errno.EIO, "text"), Path("a"))))
    assert isinstance(error, StorageError)
    assert is_storage_error(error)
    assert storage_error(error, Path("b")) is error


def test_an_error_without_a_path_names_what_it_knows():
    assert str(storage_error(OSError(errno.EIO, "text", "/cache/w"))).startswith("/cache/w: must be usable, but got")
    assert str(storage_error(OSError(errno.EIO, "text"))).startswith("storage: must be usable, but got")


def test_an_error_of_storage_inside_a_block_keeps_its_own_place(tmp_path):
    with pytest.raises(StorageError, match="inner: must be writable"), atomic_path(tmp_path / "outer"):
        raise storage_error(OSError(errno.ENOSPC, "full"), Path("inner"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def watched(monkeypatch):
    """The calls that make a file durable, in order: of fsync with the kind of what is synced, and of the renaming."""
    calls = []
    sync, rename = os.fsync, Path.replace

    def fsync(descriptor):
        kind = "folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        calls.append((kind, Path(f"/proc/self/fd/{descriptor}").readlink().name))
        sync(descriptor)

    def replace(path, target):
        calls.append(("rename", Path(target).name))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    return calls


def test_a_file_is_on_the_disk_before_it_takes_the_name_and_the_name_before_the_block_ends(tmp_path, watched):
    write_json(tmp_path / "a.json", 1)
    assert watched == [("file", "a.json"), ("rename", "a.json"), ("folder", tmp_path.name)]


def test_new_folders_are_on_the_disk_too(tmp_path, watched):
    write_json(tmp_path / "b" / "c" / "a.json", 1)
    assert watched[:2] == [("folder", "b"), ("folder", tmp_path.name)]
    assert watched[-1] == ("folder", "c")


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_is_written_all_the_same(tmp_path, monkeypatch, number):
    def fsync(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "a.json").read_text() == "1\n"


def test_a_file_that_never_reached_the_disk_does_not_replace_the_old_one(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", "old")

    def fsync(_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StorageError, match=r"a\.json: must be writable, but got 'Input/output error'\. Check the disk"):
        write_json(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == '"old"\n'
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("links", [True, False])
def test_a_backup_is_the_file_before(tmp_path, monkeypatch, links):
    def no_links(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    path, backup = tmp_path / "a.json", tmp_path / "backup" / "a.json"
    write_json(path, 1, backup)
    assert not backup.exists(), "there was nothing before"
    write_json(path, 2, backup)
    write_json(path, 3, backup)
    assert (path.read_text(), backup.read_text()) == ("3\n", "2\n")
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a.json", "a.json", "backup"]


FULL_DISK = """
import sys
from pathlib import Path
import torch
from cellseg.checkpoint import open_checkpoint, save_checkpoint
from cellseg.config import TrialConfig
from cellseg.files import StorageError

folder = Path(sys.argv[1])

def save(epoch):
    save_checkpoint(
        folder / "last", {"weight": torch.full((400_000,), float(epoch))}, training={"epoch": epoch},
        config=TrialConfig().to_flat(), class_names=("cell",), metric="segm/AP50", value=0.5, epoch=epoch,
        metrics={}, parameters=1, data_fingerprint="f",
    )

save(1)
(folder / "filler").write_bytes(bytes(2_000_000))
try:
    save(2)
except StorageError as error:
    print(error)
checkpoint = open_checkpoint(folder / "last")
print(checkpoint.info.epoch, checkpoint.load_weights()["weight"][0].item(), checkpoint.load_training())
print(sorted(path.name for path in (folder / "last").iterdir()))
(folder / "filler").unlink()
save(2)
print(open_checkpoint(folder / "last").load_weights()["weight"][0].item())
"""


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path):
    done = run_on_small_disk(FULL_DISK, tmp_path / "disk", "4m")
    assert done.returncode == 0, done.stderr
    error, former, names, continued = done.stdout.splitlines()
    assert "weights-0002.pt: must be writable, but got 'No space left on device'. Free some space" in error
    assert former == "1 1.0 {'epoch': 1}"
    assert names == "['checkpoint.json', 'training-0001.pt', 'weights-0001.pt']"
    assert continued == "2.0"


def test_torch_tells_that_the_disk_is_full(tmp_path, monkeypatch):
    """Whatever torch makes of the system's error, it is found."""
    from cellseg.checkpoint import _save_tensors

    def save(value, file):
        raise wrapped(errno.ENOSPC)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(StorageError, match=r"x\.pt: must be writable, but got 'No space left on device'"):
        _save_tensors(tmp_path / "x.pt", {})
    assert list(tmp_path.iterdir()) == []
