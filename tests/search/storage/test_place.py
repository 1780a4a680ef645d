"""Where results may lie."""

from pathlib import Path

import pytest

from cellseg.cli import EXIT_OK, EXIT_USER_ERROR
from cellseg.errors import UserError
from search.run import main
from search.storage.place import check_place

SPACE = """
metric: segm/AP50
direction: maximize
trials: 1
epochs: 1
data: {generate: {train: 4, test: 1, seed: 1, size: 64}}
space: {optim.lr: {low: 1e-3, high: 1e-2}, model.weights: none}
"""


@pytest.fixture
def job_folder(tmp_path, monkeypatch) -> Path:
    """The working directory of a Ray job, where Ray itself unpacks it; the current folder."""
    from ray._private.runtime_env.packaging import get_local_dir_from_uri
    from ray._private.runtime_env.working_dir import WorkingDirPlugin

    session = tmp_path / "ray" / "session_2026-01-01"
    plugin = WorkingDirPlugin(str(session / "runtime_resources"), None)
    folder = Path(get_local_dir_from_uri("gcs://_ray_pkg_0123456789abcdef.zip", plugin._resources_dir))
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    return folder


def test_results_in_rays_copy_of_the_working_directory_are_refused(job_folder):
    for results in (Path("results"), Path(), job_folder / "deep" / "results"):
        with pytest.raises(UserError, match=r"--results: must be a folder that outlives the job, but got .*_ray_pkg_"):
            check_place(results)


def test_results_elsewhere_are_taken(job_folder, tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir()
    check_place(shared)
    check_place(Path("../../../../..") / "shared")
    (job_folder / "results").symlink_to(shared)
    check_place(Path("results"))


def test_a_folder_that_is_only_named_like_rays_is_taken(tmp_path):
    check_place(tmp_path / "working_dir_files" / "results")
    check_place(tmp_path / "runtime_resources" / "results")


def test_a_search_is_refused_before_it_writes_anything(job_folder, capsys):
    Path("space.yaml").write_text(SPACE)
    assert main(["space.yaml", "--dry-run"]) == EXIT_OK
    assert main(["space.yaml"]) == EXIT_USER_ERROR
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --results: must be a folder that outlives the job, but got 'results'")
    assert [path.name for path in job_folder.iterdir()] == ["space.yaml"]
