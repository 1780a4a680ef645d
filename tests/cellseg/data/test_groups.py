"""Images of one patient or slide share a fold."""

import json
import pickle
import re

import numpy as np
import pytest

from cellseg.config import DataConfig, TrialConfig
from cellseg.data.groups import read_groups
from cellseg.data.packed import open_packed
from cellseg.data.split import assign_grouped_folds, split
from cellseg.errors import UserError

NAMES = ["p1_a", "p1_b", "p2_a", "p3_a"]
FILES = {
    "groups.csv": "p1_a,one\np1_b, one\n\np2_a,2\np3_a,3\nelsewhere,4\n",
    "headed.csv": "\ufeffImage,Group\np1_a,one\np1_b,one\np2_a,2\np3_a,3\n",
    "groups.json": json.dumps({"p1_a": "one", "p1_b": "one", "p2_a": 2, "p3_a": "3"}),
    "groups.yaml": "p1_a: one\np1_b: one\np2_a: 2\np3_a: '3'\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_names_the_group_of_each_image(tmp_path, name):
    (tmp_path / name).write_text(FILES[name], encoding="utf-8")
    assert read_groups(DataConfig(root=str(tmp_path), groups=name), NAMES) == ("one", "one", "2", "3")
    assert read_groups(DataConfig(groups=str(tmp_path / name)), NAMES[2:]) == ("2", "3")


@pytest.mark.parametrize("pattern", ["^(p[0-9])_", "([0-9])"])
def test_a_pattern_finds_the_group_in_an_images_name(pattern):
    groups = read_groups(DataConfig(groups=pattern), NAMES)
    assert groups[0] == groups[1] and len(set(groups)) == 3


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        (
            "^p1",
            "must be a file (.csv, .json, .yaml, .yml) or a regular expression with one group, but got '^p1' with",
        ),
        ("(p)(1)", "but got '(p)(1)' with 2 groups. Example: "),
        ("(p", "with one group, but got '(p' (missing ), unterminated subpattern at position 0)."),
    ],
)
def test_a_pattern_needs_one_group(pattern, problem):
    with pytest.raises(UserError, match=re.escape(problem)):
        TrialConfig.from_flat({"data.groups": pattern})


@pytest.mark.parametrize("pattern", ["^(p1)_", "^(p1)?"])
def test_names_without_a_group_are_told(pattern):
    with pytest.raises(UserError, match=r"must find a group in each image's name, but got none in p2_a, p3_a\. Change"):
        read_groups(DataConfig(groups=pattern), NAMES)


@pytest.mark.parametrize(
    ("name", "content", "problems"),
    [
        ("a.csv", "p1_a,1\n", ["must name a group for each image, but got none for p1_b, p2_a, p3_a"]),
        (
            "a.csv",
            "p1_a,1,2\np1_b\np2_a,\np3_a,1\np3_a,1\n",
            ["line 1: must be", "line 2: must be", "line 3: must be", "one line, but got 'p3_a' 2 times"],
        ),
        ("a.json", "[1]", ["must map image names to groups, but got list"]),
        ("a.yaml", "p1_a: [1]\np1_b: true\np2_a: ''\np3_a: 1.5\n", ["p1_a: a group must", "p1_b", "p2_a", "p3_a"]),
        ("a.csv", None, ["must be a readable CSV file, but got 'No such file or directory'"]),
        ("a.yml", None, ["the file must exist"]),
    ],
)
def test_everything_wrong_with_a_file_is_told_at_once(tmp_path, name, content, problems):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as raised:
        read_groups(DataConfig(root=str(tmp_path), groups=name), NAMES)
    assert len(raised.value.problems) == len(problems)
    for told, expected in zip(raised.value.problems, problems, strict=True):
        assert told.startswith(str(tmp_path / name)) and expected in told


def test_groups_travel_with_the_data_and_change_their_fingerprint(synthetic_root, tmp_path):
    plain = open_packed(DataConfig(root=str(synthetic_root)), tmp_path)
    pattern = r"(\d)$"
    config = DataConfig(root=str(synthetic_root), groups=pattern, num_folds=2)
    packed = open_packed(config, tmp_path)
    assert plain.groups is None and packed.groups == tuple(name[-1] for name in plain.names)
    assert len(list(tmp_path.glob("*.arrow"))) == 1, "packed once"
    assert packed.fingerprint != plain.fingerprint
    other = open_packed(DataConfig(root=str(synthetic_root), groups="(.)"), tmp_path)
    assert other.fingerprint not in (plain.fingerprint, packed.fingerprint)
    assert pickle.loads(pickle.dumps(packed)).groups == packed.groups
    with pytest.raises(UserError, match=r"data\.groups: must be known when the data are opened"):
        split(plain.label_counts, config, plain.groups)


def grouped(rng: np.random.Generator, num_groups: int) -> tuple[np.ndarray, list[str]]:
    """Counts of three classes, of which each group has a mixture of its own, and the group of each image."""
    counts, groups = [], []
    for group in range(num_groups):
        chances = rng.random(3) ** 2
        for _ in range(int(rng.integers(1, 12))):
            counts.append(rng.integers(0, 20, 3) * (rng.random(3) < chances))
            groups.append(f"patient {group}")
    order = rng.permutation(len(counts))
    return np.array(counts)[order], [groups[index] for index in order]


@pytest.mark.parametrize("seed", range(6))
def test_a_group_lies_in_one_fold_and_folds_are_alike(seed):
    counts_NC, groups = grouped(np.random.default_rng(seed), 40)
    fold_N = assign_grouped_folds(counts_NC, groups, 5, seed)
    for group in set(groups):
        assert len({fold for fold, own in zip(fold_N.tolist(), groups, strict=True) if own == group}) == 1
    sizes = np.bincount(fold_N, minlength=5)
    assert sizes.max() - sizes.min() <= 12, "no more than a group"
    present_FC = np.stack([(counts_NC[fold_N == fold] > 0).sum(axis=0) for fold in range(5)])
    assert (np.abs(present_FC - present_FC.mean(axis=0)) <= 0.35 * present_FC.mean(axis=0)).all()
    assert np.array_equal(fold_N, assign_grouped_folds(counts_NC, groups, 5, seed))
    assert not np.array_equal(fold_N, assign_grouped_folds(counts_NC, groups, 5, seed + 1))


def test_as_many_groups_as_folds_leave_no_fold_empty_however_unequal():
    groups = ["large"] * 30 + ["a", "b", "c"]
    counts_NC = np.ones((33, 1), int)
    for seed in range(10):
        fold_N = assign_grouped_folds(counts_NC, groups, 4, seed)
        assert sorted(np.bincount(fold_N).tolist()) == [1, 1, 1, 30]
        parts = split(counts_NC, DataConfig(num_folds=4, groups="(.)", split_seed=seed), groups)
        assert not {groups[index] for index in parts.training} & {groups[index] for index in parts.validation}


def test_fewer_groups_than_folds_are_refused():
    with pytest.raises(UserError, match="each fold needs a group of images, but got 3 folds, 2 groups"):
        split(np.ones((9, 1), int), DataConfig(num_folds=3, groups="(.)"), ["a", "b", "a"] * 3)
