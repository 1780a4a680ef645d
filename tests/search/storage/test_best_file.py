"""``best.yaml`` follows the best trial."""

import json

from fakes import make_report, make_study

from cellseg.config import TrialConfig, flatten
from cellseg.files import read_yaml
from search.storage.store import StudyStore


def test_the_file_is_the_config_of_the_best_trial_so_far(tmp_path):
    study = make_study(tmp_path)
    file = study.store.folder / "best.yaml"
    numbers = [study.propose().number for _ in range(2)]
    study.store.flush()
    assert not file.exists()
    for number, value in zip(numbers, (0.5, 0.75), strict=True):
        study.report(number, make_report(1, value))
        study.store.flush()
        row = study.store.trial(number)
        assert TrialConfig.from_flat(flatten(read_yaml(file), "best")).to_flat() == json.loads(row.config)
        assert f"trial t{number:04d}" in file.read_text() and f"{value:.4f} in epoch 1" in file.read_text()


def test_it_is_written_only_when_the_best_changes(tmp_path):
    study = make_study(tmp_path)
    number = study.propose().number
    study.report(number, make_report(1, 0.5) | {"best_value": 0.5, "best_epoch": 1})
    study.store.flush()
    file = study.store.folder / "best.yaml"
    file.unlink()
    study.report(number, make_report(2, 0.4) | {"best_value": 0.5, "best_epoch": 1})
    study.store.flush()
    assert not file.exists()
    StudyStore.open(study.store.folder).write_best_config()
    assert file.exists()
