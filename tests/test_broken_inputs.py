"""What a user can get wrong, from the command's point of view.

Each input ends with exit status 2 and lines on standard error that say what must be and what was got. No traceback, and
nothing new in the folder.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cellseg.data.synthetic import generate_dataset

SPACE = """
metric: segm/AP50
direction: maximize
trials: 2
epochs: 3
space:
  optim.lr: {low: 1e-4, high: 1e-2, log: true}
  model.backbone: resnet10t
  model.weights: none
"""


class Place:
    """A folder with a data set and a space, both sound, and room for results."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.data = folder / "data"
        self.space = folder / "space.yaml"
        self.results = folder / "results"
        self.study = self.results / "space"
        self.space.write_text(SPACE)

    @property
    def sample(self) -> Path:
        """A training image's folder."""
        return sorted((self.data / "train").iterdir())[0]

    @property
    def class_map(self) -> Path:
        return sorted(self.sample.glob("class*.tif"))[0]

    def edit(self, old: str, new: str) -> None:
        assert old in SPACE
        self.space.write_text(SPACE.replace(old, new))

    def add(self, line: str) -> None:
        self.space.write_text(f"{SPACE}  {line}\n")

    def make_study(self, epochs: int = 1, weights: bytes | None = None) -> None:
        """A study of this space and data, as the command leaves it, with one finished trial."""
        from search.prepare import open_study, prepare_data
        from search.space import load_space

        space = load_space(self.space)
        study = open_study(space, "space", self.results, prepare_data(space, self.data, self.results))
        proposal = study.propose()
        report = {"epoch": 1, "losses": {}, "metrics": {"segm/AP50": 0.5}, "value": 0.5, "best_value": 0.5}
        report |= {"best_epoch": 1, "learning_rate": 0.1, "seconds": 1.0, "images_per_second": 1.0}
        study.report(0, report | {"peak_memory_bytes": 1, "parameters": 1, "ending": "epochs"})
        if weights is not None:
            self._write_checkpoint(study.store.checkpoint_folder(0) / "best", dict(proposal.config), weights)
        study.end(0, "epochs")

    def _write_checkpoint(self, folder: Path, config: dict, weights: bytes) -> None:
        from cellseg.config import TrialConfig

        folder.mkdir(parents=True)
        (folder / "weights-0001.pt").write_bytes(weights)
        small = {"model.fpn_channels": 8, "model.box_head_width": 8, "model.mask_head_width": 8}
        counts = ("model.detections_per_image", "model.rpn_candidates", "model.rpn_proposals")
        fixed = {"model.anchors": "8-128"} | dict.fromkeys(counts, 10)
        description = {
            "config": TrialConfig.from_flat(config | small | fixed).to_flat(),
            "class_names": ["1", "2", "3", "4"],
            "metric": "segm/AP50",
            "value": 0.5,
            "epoch": 1,
            "metrics": {},
            "parameters": 1,
            "data_fingerprint": "",
            "versions": {},
            "weights": "weights-0001.pt",
            "weights_blake2b": "0" * 32,
            "training": None,
            "format_version": 1,
        }
        (folder / "checkpoint.json").write_text(json.dumps(description))


@pytest.fixture(scope="module")
def sound_data(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound") / "data"
    generate_dataset(root, train=5, test=2, seed=0, size=64)
    return root


@pytest.fixture
def place(tmp_path, tmp_path_factory, sound_data, monkeypatch):
    monkeypatch.setenv("CELLSEG_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sound_data, tmp_path / "data")
    return Place(tmp_path)


def listing(folder: Path) -> dict[str, bytes]:
    """Every file with its content. The lock of a study is empty talk: it may stay."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def search(*arguments: str) -> int:
    from search.run import main

    return main(["space.yaml", *arguments])


def export(*arguments: str) -> int:
    from search.export import main

    return main(["--device", "cpu", *arguments])


def check(place: Place, capsys, status: int, *laws: str) -> None:
    """The command refused, with a line for each of ``laws`` (regular expressions) and no other."""
    out, err = capsys.readouterr()
    assert status == 2, out
    lines = err.splitlines()
    assert all(line.startswith("error: ") for line in lines), err
    assert "Traceback" not in out + err
    for law in laws:
        assert re.search(law, err), f"{law!r} is not in:\n{err}"
    assert len(lines) == len(laws), err


def run_broken(place: Place, capsys, command, arguments, *laws: str) -> None:
    before = listing(place.folder)
    check(place, capsys, command(*arguments), *laws)
    assert listing(place.folder) == before


BAD_SPACES = {
    "bad YAML": ("epochs: 3", "epochs: [3", r"space.yaml: must be valid YAML, but got: .*line"),
    "a tab": ("epochs: 3", "\tepochs: 3", r"space.yaml: must be valid YAML"),
    "a repeated key": ("epochs: 3", "epochs: 3\nepochs: 4", r"the key 'epochs' appears twice .* line 6"),
    "an unknown key": ("optim.lr:", "optim.lrr:", r"optim.lrr: must be a config field.*Did you mean 'optim.lr'\?"),
    "an unknown setting": ("trials: 2", "trails: 2", r"trials: must be given", r"trails: .*Did you mean 'trials'\?"),
    "low > high": ("low: 1e-4, high: 1e-2", "low: 1e-2, high: 1e-4", r"low < high must hold, but got low=0.01"),
    "log from zero": ("low: 1e-4", "low: 0", r"must be greater than 0, but got 0", r"log needs low > 0, but got low=0"),
    "an unknown backbone": ("resnet10t", "resnet11", r"model.backbone: must be .*resnet10t.*but got 'resnet11'"),
    "an unknown metric": ("segm/AP50", "segm/AP55", r"metric: .*'segm/AP50'.*but got 'segm/AP55'"),
    "minimising": ("maximize", "minimize", r"direction: must be 'maximize'"),
    "no trials": ("trials: 2", "trials: 0", r"trials: must be greater than or equal to 1, but got 0"),
    "text for a number": ("epochs: 3", "epochs: three", r"epochs: must be a valid integer, but got 'three'"),
    "a value that is no number": ("low: 1e-4", "low: .nan", r"optim.lr: "),
    "nothing sampled": ("{low: 1e-4, high: 1e-2, log: true}", "1e-3", r"at least one key must be sampled"),
    "a list instead of a mapping": (SPACE, "- a\n- b\n", r"space.yaml: must be a mapping of settings, but got list"),
    "an empty file": (SPACE, "", r"space.yaml: must be a mapping of settings, but got NoneType"),
    "binary": (SPACE, "\0\1\2", r"space.yaml: must be valid YAML"),
}


@pytest.mark.parametrize("name", BAD_SPACES)
def test_a_bad_space(place, capsys, name):
    old, new, *laws = BAD_SPACES[name]
    place.edit(old, new)
    run_broken(place, capsys, search, ["--data", "data"], *laws)


@pytest.mark.parametrize(
    ("line", "law"),
    [
        ("train.epochs: {low: 1, high: 9}", r"train.epochs: "),
        ("train.seed: 3", r"train.seed: "),
        ("augment.strength: {low: 0, high: 1}", r"augment.strength: only matters for augment.preset"),
        (
            "augment.strength: {low: 0, high: 1, when: {augment.preset: full}}",
            r"augment.strength: .*augment.preset",
        ),
        ("model.norm: {choices: [group, group]}", r"model.norm: "),
        ("data.fold: 9", r"data.fold: fold < num_folds must hold, but got fold=9"),
    ],
)
def test_a_key_that_does_not_fit(place, capsys, line, law):
    place.add(line)
    before = listing(place.folder)
    status = search("--data", "data")
    err = capsys.readouterr().err
    assert status == 2
    assert re.search(law, err), err
    assert all(line.startswith("error: space.yaml: ") for line in err.splitlines())
    assert listing(place.folder) == before


@pytest.mark.parametrize(
    ("arguments", "law"),
    [
        (["--set", "optim.lr"], r"--set: must be KEY=VALUE, but got 'optim.lr'"),
        (["--set", "optim.lrr=1"], r"--set optim.lrr: .*Did you mean 'optim.lr'\?"),
        (["--set", "optim.lr=["], r"--set optim.lr: must be a YAML value, but got '\['"),
        (["--set", "optim.lr=fast"], r"optim.lr: must be a valid number, but got 'fast'"),
        (["--set", "optim.lr=2020-13-45"], r"--set optim.lr: must be a YAML value"),
        (["--trials", "0"], r"trials: must be greater than or equal to 1, but got 0"),
        (["--epochs", "-3"], r"epochs: must be greater than or equal to 1, but got -3"),
        (["--study", "../outside"], r"--study: must be 1 to 80 letters.* but got '../outside'"),
        (["--study", ""], r"--study: must be 1 to 80 letters"),
        (["--study", "x" * 300], r"--study: must be 1 to 80 letters"),
        (["--data", "nowhere"], r"nowhere: the data folder must exist, but got no folder"),
        (["--data", "space.yaml"], r"space.yaml: the data folder must exist"),
        (["--data", "data/test_release"], r"test_release: must hold train/<id>/image.tif .*but got neither"),
        ([], r"--data: a data set must be named"),
        (["--data", "data", "--set", "data.num_folds=6"], r"data.num_folds: each fold needs an image, but got 6 folds"),
        (["--data", "data", "--results", "space.yaml"], r"space.yaml/space: the folder must be writable"),
        (["--data", "data", "--results", "/proc/nowhere"], r"/proc/nowhere/space: the folder must be writable"),
        (["--set", "data={generate: {train: 5, size: 32}}"], r"size: 64 <= size <= 2048 .*but got 32"),
    ],
)
def test_a_bad_command_line(place, capsys, arguments, law):
    run_broken(place, capsys, search, arguments, law)


@pytest.mark.parametrize("space", ["nowhere.yaml", "data"])
def test_a_space_that_is_no_file(place, capsys, space):
    from search.run import main

    before = listing(place.folder)
    check(place, capsys, main([space, "--data", "data"]), rf"{space}: .*must")
    assert listing(place.folder) == before


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def _write_map(path: Path, change) -> None:
    ids_HW = tifffile.imread(path)
    path.unlink()
    tifffile.imwrite(path, change(ids_HW))


def _with(value: float):
    def change(ids_HW: np.ndarray) -> np.ndarray:
        ids_HW[0, 0] = value
        return ids_HW

    return change


BROKEN_DATA = {
    "a truncated image": (lambda p: _truncate(p.sample / "image.tif"), r"image.tif: must be a whole image file"),
    "a truncated mask": (lambda p: _truncate(p.class_map), r"class\d.tif: must be a whole image file"),
    "an empty file": (lambda p: p.class_map.write_bytes(b""), r"class\d.tif: must be a TIFF, PNG or JPEG file"),
    "text": (lambda p: (p.sample / "image.tif").write_text("hello"), r"image.tif: must be a TIFF, PNG or JPEG file"),
    "a mask of another size": (lambda p: _write_map(p.class_map, lambda ids: ids[1:]), r"class\d.tif: .*\d+ x \d+"),
    "an id that is not a number": (lambda p: _write_map(p.class_map, _with(np.nan)), r"pixels must be finite"),
    "half an id": (lambda p: _write_map(p.class_map, _with(1.5)), r"ids must be whole numbers"),
    "a negative id": (lambda p: _write_map(p.class_map, _with(-1)), r"ids must not be negative, but got -1"),
    "no image": (lambda p: (p.sample / "image.tif").unlink(), r"image"),
    "a colour mask": (
        lambda p: _write_map(p.class_map, lambda ids: np.stack([ids] * 3, -1).astype(np.uint8)),
        r"an id map must have one value per pixel, but got 3",
    ),
}


@pytest.mark.parametrize("name", BROKEN_DATA)
def test_broken_data(place, capsys, name):
    damage, law = BROKEN_DATA[name]
    damage(place)
    run_broken(place, capsys, search, ["--data", "data"], law)


def test_all_problems_of_a_data_set_come_at_once(place, capsys):
    _truncate(place.sample / "image.tif")
    other = sorted((place.data / "train").iterdir())[1]
    _truncate(other / "image.tif")
    laws = [rf"{folder.name}/image.tif: must be a whole image file" for folder in (place.sample, other)]
    run_broken(place, capsys, search, ["--data", "data"], *laws)


def test_a_study_of_another_space(place, capsys):
    place.make_study()
    run_broken(
        place, capsys, search, ["--data", "data", "--epochs", "9"], r"continue with the space it started with, but got"
    )


def test_a_study_of_other_data(place, capsys):
    place.make_study()
    shutil.rmtree(place.sample)
    run_broken(
        place,
        capsys,
        search,
        ["--data", "data", "--set", "data.num_folds=3"],
        r"space it started",
        r"data it started with",
    )


BROKEN_STUDIES = {
    "a cut study.json": ("study.json", b'{"format":', r"study.json: must be valid JSON"),
    "a foreign study.json": ("study.json", b"{}", r"study.json: must be written by search.run"),
    "a newer study.json": ("study.json", b'{"format": "cellseg-study", "format_version": 9}', r"of format 4 or older"),
    "a damaged table": ("trials.parquet", b"PAR1....", r"trials.parquet: must be a readable Parquet file"),
    "damaged epochs": ("epochs/part-00000.parquet", b"", r"part-00000.parquet: must be a readable Parquet file"),
}


@pytest.mark.parametrize("name", BROKEN_STUDIES)
@pytest.mark.parametrize("command", ["search", "export"])
def test_a_damaged_study(place, capsys, name, command):
    place.make_study()
    file, content, law = BROKEN_STUDIES[name]
    (place.study / file).write_bytes(content)
    if command == "search":
        run_broken(place, capsys, search, ["--data", "data"], law)
    else:
        run_broken(place, capsys, export, ["--best", "--study", "space"], law)


def test_a_table_of_another_program(place, capsys):
    import pyarrow as pa
    import pyarrow.parquet as pq

    place.make_study()
    pq.write_table(pa.table({"a": [1]}), place.study / "trials.parquet")
    run_broken(
        place, capsys, search, ["--data", "data"], r"trials.parquet: must be written by search.run, but got a file"
    )


def test_a_study_file_without_its_fingerprints(place, capsys):
    place.make_study()
    content = {"format": "cellseg-study", "format_version": 1, "written": ""}
    (place.study / "study.json").write_text(json.dumps(content))
    run_broken(place, capsys, search, ["--data", "data"], r"space it started with", r"data it started with")


@pytest.mark.parametrize(
    ("arguments", "law"),
    [
        (["--best"], r"results: must hold a study, but got none. Run python -m search.run"),
        (["--best", "--study", "space"], r"results/space: must hold a study, but got no study.json"),
        (["--best", "--study", "../../etc"], r"--study: must be"),
        (["--best", "--study", "x" * 300], r"--study: must be"),
        (["--best", "--results", "space.yaml"], r"space.yaml: must hold a study"),
    ],
)
def test_an_export_without_a_study(place, capsys, arguments, law):
    run_broken(place, capsys, export, arguments, law)


@pytest.mark.parametrize(
    ("arguments", "law"),
    [
        (["--trial", "7"], r"must hold a trial 7, but got none"),
        (["--trial", "0"], r"trial 0: its checkpoint must have been kept, but got those of \[\] only"),
        (["--best"], r"trial 0: its checkpoint must have been kept"),
    ],
)
def test_an_export_of_a_trial_that_is_not_there(place, capsys, arguments, law):
    place.make_study()
    run_broken(place, capsys, export, arguments, law)


def test_an_export_of_weights_that_are_not_those_of_the_checkpoint(place, capsys):
    place.make_study(weights=b"rubbish")
    run_broken(place, capsys, export, ["--best"], r"weights-0001.pt: must be the file that checkpoint.json describes")


def test_an_export_of_a_checkpoint_without_weights(place, capsys):
    place.make_study(weights=b"rubbish")
    next(place.study.rglob("weights-0001.pt")).unlink()
    run_broken(place, capsys, export, ["--best"], r"weights-0001.pt: must be a readable file of tensors")


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"format_version": 2}'])
def test_an_export_of_a_damaged_checkpoint_description(place, capsys, content):
    place.make_study(weights=b"rubbish")
    next(place.study.rglob("checkpoint.json")).write_text(content)
    run_broken(place, capsys, export, ["--best"], r"checkpoint.json: ")


BROKEN_LISTS = {
    "absent": (None, r"test_image_name_to_ids.json: the file must exist"),
    "no JSON": ("[", r"test_image_name_to_ids.json: must be valid JSON"),
    "empty": ("[]", r"test_image_name_to_ids.json: must be a list"),
    "a number": ("7", r"test_image_name_to_ids.json: must be a list"),
    "an entry of text": ('["a.tif"]', r"entry 0: must be a mapping"),
    "an id of text": ('[{"file_name": "a.tif", "id": "1", "height": 1, "width": 1}]', r"id must be a whole number"),
    "images that are not there": (
        '[{"file_name": "a.tif", "id": 1, "height": 1, "width": 1}]',
        r"none of the 1 listed",
    ),
}


@pytest.mark.parametrize("name", BROKEN_LISTS)
def test_an_export_with_a_broken_test_list(place, capsys, name):
    place.make_study(weights=b"rubbish")
    content, law = BROKEN_LISTS[name]
    path = place.data / "test_image_name_to_ids.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    run_broken(place, capsys, export, ["--best"], law)


def test_an_export_to_a_device_that_is_not_there(place, capsys):
    place.make_study(weights=b"rubbish")
    run_broken(place, capsys, export, ["--best", "--device", "abacus"], r"--device: must be a device of this machine")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_results_that_are_read_only(place, capsys):
    place.results.mkdir()
    place.results.chmod(0o555)
    try:
        run_broken(
            place, capsys, search, ["--data", "data"], r"results/space: the folder must be writable, but got 'Perm"
        )
    finally:
        place.results.chmod(0o755)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        ("search.run", ["space.yaml", "--data", "nowhere"]),
        ("search.run", ["nowhere.yaml"]),
        ("search.export", ["--best"]),
    ],
)
def test_the_real_commands_end_the_same_way(place, module, arguments):
    before = listing(place.folder)
    done = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"error: .* must .*\n", done.stderr)
    assert listing(place.folder) == before
