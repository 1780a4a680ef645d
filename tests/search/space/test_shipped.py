"""Space files that come with the package, by name."""

from pathlib import Path

import pytest

from cellseg.errors import UserError
from search.__main__ import main
from search.space.shipped import find_space, shipped_spaces

SPACES = Path(__file__).parents[3] / "spaces"


def test_every_file_of_spaces_is_shipped_under_its_own_name():
    files = {*SPACES.rglob("*.yaml")}
    assert len(files) > 5
    assert {*shipped_spaces().values()} == files
    assert all(find_space(Path(file.stem)) == file for file in files)


def test_a_name_means_the_file_where_there_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spaces").mkdir()
    (tmp_path / "spaces" / "quickstart.yaml").write_text("{}")
    assert find_space(Path("spaces/quickstart.yaml")) == Path("spaces/quickstart.yaml")
    (tmp_path / "quickstart").mkdir()  # a folder is no space
    assert find_space(Path("quickstart")) == SPACES / "quickstart.yaml"
    (tmp_path / "full").write_text("{}")
    assert find_space(Path("full")) == Path("full")
    assert find_space(Path("absent.yaml")) == Path("absent.yaml")  # its reader reports it


def test_an_unknown_name_gets_the_nearest_one_and_the_list(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    listed = f"These come with the package: {', '.join(shipped_spaces())}."
    law = "must be a YAML file or the name of a shipped space, but got an unknown name."
    for name, hint in (("quikstart", f"Did you mean 'quickstart'? {listed}"), ("xyzzy", listed)):
        with pytest.raises(UserError) as error:
            find_space(Path(name))
        assert error.value.problems == (f"{name}: {law} {hint}",)


def test_the_path_of_a_shipped_file_that_is_not_here_gets_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"spaces/full.yaml: the file must exist, .* `full` alone names the one"):
        find_space(Path("spaces/full.yaml"))


def test_a_search_takes_a_shipped_space_by_name_and_is_called_like_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "quickstart", "--dry-run"]) == 0
    assert capsys.readouterr().out.startswith("study quickstart\n")
    assert main(["run", "quikstart", "--dry-run"]) == 2
    assert "Did you mean 'quickstart'?" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == []
