"""Checkpoints that are broken at random places: they are read, or refused as the user's error."""

import functools
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from examples import as_json, broken, damaged, property_test
from hypothesis import strategies as st

from cellseg.checkpoint import open_checkpoint, save_checkpoint
from cellseg.config import TrialConfig
from cellseg.errors import UserError
from cellseg.files import read_json

DESCRIPTION = {
    "config": TrialConfig.from_flat({"optim.lr": 0.01, "model.anchors": "8-128"}).to_flat(),
    "class_names": ["round", "spindle"],
    "category_ids": [4, 30],
    "metric": "segm/AP50",
    "value": 0.5,
    "epoch": 3,
    "metrics": {"segm/AP50": 0.5, "loss/validation": 1.5},
    "parameters": 10,
    "data_fingerprint": "0" * 32,
}


@functools.cache
def sound() -> dict[str, bytes]:
    """The files of a sound checkpoint."""
    with TemporaryDirectory() as folder:
        weights = {"layer.weight": torch.arange(12.0).reshape(3, 4)}
        save_checkpoint(Path(folder), weights, training={"watched": [0.1], "model": weights}, **DESCRIPTION)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@functools.cache
def description() -> dict:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.json"
        path.write_bytes(sound()["checkpoint.json"])
        return read_json(path)


def read_all(files: dict[str, bytes]) -> None:
    """Read everything that a checkpoint holds, unless it is refused."""
    with TemporaryDirectory() as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        try:
            checkpoint = open_checkpoint(Path(folder))
            assert isinstance(checkpoint.config, TrialConfig)
            checkpoint.load_weights()
            checkpoint.load_training()
        except UserError as error:
            assert folder in str(error)


def test_a_sound_checkpoint_is_read():
    with TemporaryDirectory() as folder:
        for name, content in sound().items():
            (Path(folder) / name).write_bytes(content)
        assert open_checkpoint(Path(folder)).load_training()["watched"] == [0.1]


@property_test(few=40, many=3000, content=st.deferred(lambda: broken(description())))
def test_a_broken_description_is_the_users_error_and_nothing_else(content):
    read_all(sound() | {"checkpoint.json": as_json(content)})


@st.composite
def damaged_files(draw: st.DrawFn) -> dict[str, bytes]:
    name = draw(st.sampled_from(sorted(sound())))
    return sound() | {name: draw(damaged(sound()[name]))}


@property_test(few=30, many=2000, files=damaged_files())
def test_a_damaged_file_is_the_users_error_and_nothing_else(files):
    read_all(files)
