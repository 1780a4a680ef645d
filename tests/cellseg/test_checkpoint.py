import json
import os
import pickle
import platform
from pathlib import Path

import pytest
import torch
from torch import nn

from cellseg import checkpoint as module
from cellseg.checkpoint import find_weights, has_checkpoint, load_tensors, open_checkpoint, save_checkpoint
from cellseg.config import TrialConfig
from cellseg.errors import UserError
from cellseg.owners import Claim, SupersededError

CONFIG = TrialConfig.from_flat({"optim.lr": 0.123, "model.anchors": "8-128", "data.shorter_side": 64})
TRAINING = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1}]}, "best_value": 0.1}


def model(value: float = 0.5) -> nn.Module:
    layer = nn.Linear(2, 3)
    nn.init.constant_(layer.weight, value)
    return layer


def save(folder, epoch=3, value=0.5, training=TRAINING, twin=None, **more):
    save_checkpoint(
        folder,
        model(value).state_dict(),
        training=training,
        twin=twin,
        config=CONFIG.to_flat(),
        class_names=("round", "long"),
        metric="segm/AP50",
        value=0.25,
        epoch=epoch,
        metrics={"segm/AP50": 0.25, "segm/AP": 0.125},
        parameters=9,
        data_fingerprint="abc",
        **more,
    )
    return folder


def files_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def edit(folder, **change):
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_what_was_saved_is_what_is_read(tmp_path):
    checkpoint = open_checkpoint(save(tmp_path / "last"))
    assert checkpoint.config == CONFIG
    assert checkpoint.info.class_names == ("round", "long")
    assert (checkpoint.info.metric, checkpoint.info.value, checkpoint.info.epoch) == ("segm/AP50", 0.25, 3)
    assert checkpoint.info.metrics == {"segm/AP50": 0.25, "segm/AP": 0.125}
    weights = checkpoint.load_weights()
    assert weights.keys() == model().state_dict().keys()
    assert torch.equal(weights["weight"], model().weight)
    training = checkpoint.load_training()
    assert training is not None
    assert torch.equal(training["optimizer"]["state"][0]["step"], torch.tensor(3.0))
    assert training["best_value"] == 0.1


class TakenWhileWriting(Claim):
    """A claim that another process takes over when the tensors are written, or just after the commit."""

    def __init__(self, path: Path, after: int):
        super().__init__(path)
        self.path, self.left = path, after
        self.other: Claim | None = None

    @property
    def holds(self) -> bool:
        self.left -= 1
        if self.left < 0 and self.other is None:
            self.other = Claim(self.path)
            save(self.path.parent, epoch=3, value=0.75, claim=self.other)
        return super().holds


@pytest.mark.parametrize("twin", [False, True])
def test_what_a_later_owner_wrote_meanwhile_stays(tmp_path, twin):
    folder, other = tmp_path / "last", tmp_path / "best"
    claim = TakenWhileWriting(folder / "owner", after=1)
    with pytest.raises(SupersededError):
        save(folder, claim=claim, twin=save(other) if twin else None)
    files = [f"{name}-0003-{claim.other.name}.pt" for name in ("training", "weights")]
    assert files_in(folder) == ["checkpoint.json", "owner", *files], "and nothing of the former one"
    assert float(open_checkpoint(folder).load_weights()["weight"][0, 0]) == 0.75


def test_a_commit_that_came_too_late_deletes_no_files_of_the_later_owner(tmp_path):
    claim = TakenWhileWriting(tmp_path / "owner", after=2)
    save(tmp_path, claim=claim)
    open_checkpoint(tmp_path).load_weights()
    assert (tmp_path / f"weights-0003-{claim.other.name}.pt").exists()


def test_the_folder_describes_itself_in_json(tmp_path):
    folder = save(tmp_path)
    assert files_in(folder) == ["checkpoint.json", "training-0003.pt", "weights-0003.pt"]
    content = json.loads((folder / "checkpoint.json").read_text())
    assert content["config"] == CONFIG.to_flat()
    assert content["class_names"] == ["round", "long"]
    assert content["data_fingerprint"] == "abc"
    assert content["versions"].keys() == {"python", "torch", "torchvision", "numpy"}
    assert content["versions"]["python"] == platform.python_version()
    assert content["weights"] == "weights-0003.pt"
    assert len(content["weights_blake2b"]) == 32
    assert content["category_ids"] == [1, 2]
    assert content["format_version"] == 2


def test_a_checkpoint_for_prediction_has_no_training_state(tmp_path):
    folder = save(tmp_path, training=None)
    assert files_in(folder) == ["checkpoint.json", "weights-0003.pt"]
    assert open_checkpoint(folder).load_training() is None


def test_the_next_epoch_takes_the_place_of_the_last(tmp_path):
    save(tmp_path, epoch=3)
    save(tmp_path, epoch=4, value=0.75)
    assert files_in(tmp_path) == ["checkpoint.json", "training-0004.pt", "weights-0004.pt"]
    assert torch.equal(open_checkpoint(tmp_path).load_weights()["weight"], model(0.75).weight)
    assert find_weights(tmp_path) == tmp_path / "weights-0004.pt"


@pytest.mark.parametrize("step", ["weights", "training", "description"])
def test_a_process_killed_while_saving_leaves_the_old_checkpoint(tmp_path, monkeypatch, step):
    save(tmp_path, epoch=3)
    original, calls = torch.save, []

    def killed_save(value, file):
        calls.append(file)
        if len(calls) == {"weights": 1, "training": 2}.get(step):
            file.write(b"half")
            raise KeyboardInterrupt
        original(value, file)

    def killed_json(value):
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed_save)
    if step == "description":
        monkeypatch.setattr(module, "json_text", killed_json)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, epoch=4, value=0.75)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.info.epoch == 3
    assert torch.equal(checkpoint.load_weights()["weight"], model(0.5).weight)
    assert checkpoint.load_training() is not None
    monkeypatch.undo()
    save(tmp_path, epoch=4, value=0.75)
    assert files_in(tmp_path) == ["checkpoint.json", "training-0004.pt", "weights-0004.pt"]


def test_a_full_disk_is_the_users_error(tmp_path, monkeypatch):
    def full(value, file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"weights-0003\.pt: must be writable, but got 'No space left on device'"):
        save(tmp_path)
    assert files_in(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")  # noqa: PTH110
def test_torch_reports_a_full_disk_in_a_way_that_is_understood(tmp_path):
    """Writing to a path instead of an open file, it would be a RuntimeError."""
    with pytest.raises(OSError, match="No space left on device"), open("/dev/full", "wb") as file:  # noqa: PTH123
        torch.save({"a": torch.zeros(10**6)}, file)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    assert not has_checkpoint(tmp_path)
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=r"must be a checkpoint folder with a checkpoint\.json, but got none"):
            open_checkpoint(folder)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "must be valid JSON"),
        ("[]", "format_version 2 or older is needed, but got None"),
        ("{}", "format_version 2 or older is needed, but got None"),
        ('{"format_version": 3}', "format_version 2 or older is needed, but got 3"),
        ('{"format_version": 2}', "must have exactly the keys it was written with, but category_ids, class_names,"),
        ('{"format_version": 1}', "must have exactly the keys it was written with, but class_names, config,"),
    ],
)
def test_a_foreign_description_is_refused(tmp_path, content, match):
    (tmp_path / "checkpoint.json").write_text(content)
    with pytest.raises(UserError, match=match):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["../weights-0003.pt", "/etc/passwd", "sub/a.pt", "..", "", None, 7])
def test_files_outside_of_the_folder_are_refused(tmp_path, name):
    folder = save(tmp_path / "best")
    edit(folder, weights=name, training="../other.pt")
    with pytest.raises(UserError) as raised:
        open_checkpoint(folder)
    assert raised.value.problems == tuple(
        f"{folder / 'checkpoint.json'}: {key} must be the plain name of a file in the same folder, but got {wrong!r}. "
        "Copy the checkpoint folder again."
        for key, wrong in (("weights", name), ("training", "../other.pt"))
    )


def test_a_description_of_absurd_size_is_not_read(tmp_path, monkeypatch):
    folder = save(tmp_path / "best")
    monkeypatch.setattr(module, "MAX_DESCRIPTION_BYTES", 100)
    with pytest.raises(UserError, match=r"checkpoint\.json: must have at most 100 bytes, but got "):
        open_checkpoint(folder)


def test_category_ids_are_read_as_they_were_written(tmp_path):
    folder = save(tmp_path, category_ids=(0, 90))
    assert open_checkpoint(folder).info.category_ids == (0, 90)


def test_a_description_of_format_1_is_read_with_the_classes_as_category_ids(tmp_path):
    path = save(tmp_path) / "checkpoint.json"
    content = json.loads(path.read_text()) | {"format_version": 1}
    del content["category_ids"]
    path.write_text(json.dumps(content))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.info.category_ids == (1, 2)
    assert checkpoint.load_weights().keys() == model().state_dict().keys()


def test_a_config_of_other_settings_is_refused_by_name(tmp_path):
    edit(save(tmp_path), config={"model.unheard_of": 1})
    with pytest.raises(UserError, match=r"checkpoint\.json: model\.unheard_of: must be a config field"):
        _ = open_checkpoint(tmp_path).config


def test_weights_that_changed_are_refused(tmp_path):
    path = save(tmp_path) / "weights-0003.pt"
    torch.save(model(0.75).state_dict(), path)
    with pytest.raises(UserError, match=r"weights-0003\.pt: must be the file that checkpoint\.json describes"):
        open_checkpoint(tmp_path).load_weights()


@pytest.mark.parametrize("keep", [0, 10, 500])
def test_truncated_files_are_refused(tmp_path, keep):
    save(tmp_path)
    for name in ("weights-0003.pt", "training-0003.pt"):
        content = (tmp_path / name).read_bytes()
        assert len(content) > 500
        (tmp_path / name).write_bytes(content[:keep])
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(UserError, match=r"weights-0003\.pt: .* Copy it again\."):
        checkpoint.load_weights()
    with pytest.raises(UserError, match=r"training-0003\.pt: must be a"):
        checkpoint.load_training()


def test_missing_files_are_named(tmp_path):
    save(tmp_path)
    for name in ("weights-0003.pt", "training-0003.pt"):
        (tmp_path / name).unlink()
    checkpoint = open_checkpoint(tmp_path)
    for load in (checkpoint.load_weights, checkpoint.load_training):
        with pytest.raises(UserError, match=r"0003\.pt: must be a readable file .* 'No such file or directory'"):
            load()


class Bomb:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_code_in_a_file_of_tensors_is_not_run(tmp_path):
    (tmp_path / "bomb.pt").write_bytes(pickle.dumps(Bomb(str(tmp_path / "exploded"))))
    with pytest.raises(UserError, match=r"bomb\.pt: must be a file of tensors and plain values only"):
        load_tensors(tmp_path / "bomb.pt")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_twin_shares_the_weights_and_outlives_the_other(tmp_path, monkeypatch, links):
    def no_links(*_):
        raise OSError("Operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    save(tmp_path / "best")
    writes = []
    original = torch.save
    monkeypatch.setattr(torch, "save", lambda value, file: (writes.append(file.name), original(value, file)))
    save(tmp_path / "last", twin=tmp_path / "best")
    assert [path.rsplit("/", 1)[-1] for path in writes] == ["training-0003.pt"]
    files = [tmp_path / name / "weights-0003.pt" for name in ("best", "last")]
    assert files[0].samefile(files[1]) == links
    save(tmp_path / "best", epoch=4, value=0.75)
    last = open_checkpoint(tmp_path / "last")
    assert torch.equal(last.load_weights()["weight"], model(0.5).weight)
    assert last.load_training() is not None
