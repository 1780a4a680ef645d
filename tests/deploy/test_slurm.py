"""The Slurm script, with stand-ins for Slurm's own programs."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from search.storage.store import StudyStore

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "slurm" / "search.sbatch"
PATIENCE = 240.0

STAND_INS = {
    # Notes its options and runs its command once, as on the first node.
    "srun": """
echo "srun $*" >>"$NOTES"
while [[ $1 == --* ]]; do shift; done
exec "$@"
""",
    "scontrol": """
echo "scontrol $*" >>"$NOTES"
case $1 in show) printf 'localhost\\nnode2\\n' ;; esac
""",
    "getent": "echo '127.0.1.1 STREAM localhost'; echo '10.1.2.3 STREAM localhost'",
}
SEARCH = {
    # Saves its study at SIGTERM, which takes a moment, and says so as the search does.
    "cellseg-search": """
echo "cellseg-search $*" >>"$NOTES"
echo "mode $RAY_AUTH_MODE resources $RAY_OVERRIDE_RESOURCES" >>"$NOTES"
trap 'sleep 0.5; echo saved >>"$NOTES"; exit 130' TERM
for _ in $(seq "${EPOCHS:-1}"); do sleep 0.1; done
exit "${ENDS_WITH:-0}"
""",
    "ray": """
echo "ray $*" >>"$NOTES"
[[ ${RAY_FAILS:-} ]] && exit 0
while [[ $1 != -- ]]; do shift; done
shift
"$@"
""",
}


class Job:
    """The script, run as Slurm runs it."""

    def __init__(self, folder: Path, programs: Mapping[str, str], **environment: str):
        binaries = folder / "bin"
        binaries.mkdir(exist_ok=True)
        for name, text in programs.items():
            (binaries / name).write_text(f"#!/usr/bin/env bash\n{text}")
            (binaries / name).chmod(0o755)
        self.folder = folder
        self._notes = folder / "notes"
        self.environment = os.environ | {
            "PATH": f"{binaries}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "NOTES": str(self._notes),
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NUM_NODES": "1",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_CPUS_PER_TASK": "2",
        }
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE", "CELLSEG_ENV", "RESULTS"):
            self.environment.pop(name, None)
        self.environment |= environment

    def start(self, *arguments: str, wrap: Callable[[list[str]], list[str]] = list) -> subprocess.Popen:
        command = wrap(["bash", str(SCRIPT), *arguments])
        return subprocess.Popen(
            command, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        process = self.start(*arguments)
        said, _ = process.communicate(timeout=PATIENCE)
        return process.returncode, said

    @property
    def notes(self) -> list[str]:
        return self._notes.read_text().splitlines() if self._notes.exists() else []

    def wait(self, note: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not any(line.startswith(note) for line in self.notes):
            assert time.monotonic() < deadline, f"no {note} in {self.notes}"
            time.sleep(0.05)


def test_without_a_space_it_says_how_it_is_used(tmp_path):
    status, said = Job(tmp_path, {}).run()
    assert (status, said.startswith("usage: sbatch")) == (2, True)


def test_one_node_searches_with_a_ray_of_its_own_and_the_jobs_cpus(tmp_path):
    job = Job(tmp_path, STAND_INS | SEARCH)
    assert job.run("spaces/my cells.yaml", "--data", "/data") == (0, "")
    assert job.notes == [
        f"cellseg-search run spaces/my cells.yaml --data /data --results {tmp_path}/results",
        'mode token resources {"CPU": 2}',
    ]
    token = tmp_path / "home" / ".ray" / "auth_token"
    assert len(token.read_text()) == 64
    assert token.stat().st_mode & 0o777 == 0o600
    before = token.read_text()
    assert job.run("spaces/my cells.yaml") == (0, "")
    assert token.read_text() == before, "the next job uses the same"


def test_several_nodes_join_to_a_cluster_at_an_address_that_others_reach(tmp_path):
    job = Job(tmp_path, STAND_INS | SEARCH, SLURM_JOB_NUM_NODES="2", RESULTS="../shared")
    assert job.run("my.yaml") == (0, "")
    shown, srun, ray, search, _ = job.notes
    assert shown == "scontrol show hostnames node[1-2]"
    assert srun.startswith("srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=2")
    assert ray.startswith("ray symmetric-run --address 10.1.2.3:6379 -- ")
    assert search == f"cellseg-search run my.yaml --results {tmp_path.parent}/shared --address 10.1.2.3:6379"


def test_tasks_of_an_array_are_studies_with_seeds(tmp_path):
    job = Job(tmp_path, STAND_INS | SEARCH, SLURM_ARRAY_TASK_ID="3")
    assert job.run("spaces/my.yaml") == (0, "")
    assert job.notes[0].endswith("--study my-3 --set seed=3")


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_when_the_time_is_nearly_over_the_study_is_saved_and_the_job_is_queued_again(tmp_path, nodes):
    job = Job(tmp_path, STAND_INS | SEARCH, SLURM_JOB_NUM_NODES=nodes, EPOCHS="600")
    process = job.start("my.yaml")
    job.wait("mode")
    process.send_signal(signal.SIGUSR1)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    assert job.notes[-2:] == ["saved", "scontrol requeue 4711"], "in this order"


@pytest.mark.parametrize("nodes", ["1", "2"])
def test_a_job_that_is_cancelled_saves_the_study_and_does_not_return(tmp_path, nodes):
    job = Job(tmp_path, STAND_INS | SEARCH, SLURM_JOB_NUM_NODES=nodes, EPOCHS="600")
    process = job.start("my.yaml")
    job.wait("mode")
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    assert job.notes[-1] == "saved"


@pytest.mark.parametrize("status", [0, 2])
def test_a_study_that_is_complete_or_wrong_is_not_queued_again(tmp_path, status):
    ignores = SEARCH["cellseg-search"].replace("trap '", "trap ': ").replace("exit 130", "true")
    job = Job(tmp_path, STAND_INS | SEARCH | {"cellseg-search": ignores}, EPOCHS="10", ENDS_WITH=str(status))
    process = job.start("my.yaml")
    job.wait("mode")
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == status
    assert not [note for note in job.notes if "requeue" in note]


def test_a_ray_that_does_not_start_is_no_success(tmp_path):
    job = Job(tmp_path, STAND_INS | SEARCH, SLURM_JOB_NUM_NODES="2", RAY_FAILS="1")
    status, said = job.run("my.yaml")
    assert status == 1
    assert "the search never began" in said


SPACE = """
metric: segm/AP50
direction: maximize
trials: 4
epochs: 6
asha: off
resources: {cpu: 1}
data: {generate: {train: 24, test: 3, seed: 1, size: 96}}
space:
  optim.lr: {low: 1e-3, high: 1e-2, log: true}
  model.backbone: resnet10t
  model.weights: none
  model.fpn_channels: 16
  train.workers: 0
"""


@pytest.mark.slow  # starts Ray twice
@pytest.mark.timeout(1500)
def test_a_real_study_is_interrupted_queued_again_and_continued_to_its_end(tmp_path, in_own_world):
    """``ray symmetric-run`` starts a real Ray; only ``srun`` and ``scontrol`` are stand-ins."""
    (tmp_path / "tiny.yaml").write_text(SPACE)
    address = {"getent": "echo '127.0.0.1 STREAM localhost'", "hostname": "echo 127.0.0.1"}
    search = {"cellseg-search": f'exec "{sys.executable}" -m search "$@"\n'}
    job = Job(
        tmp_path,
        STAND_INS | address | search,
        SLURM_JOB_NUM_NODES="2",
        PYTHONPATH=str(ROOT),
        RAY_agent_register_timeout_ms="120000",
        RAY_worker_niceness="0",  # else trials wait for everything beside the tests
    )
    process = job.start("tiny.yaml", wrap=in_own_world)
    place = tmp_path / "results" / "tiny"

    def rows() -> list:
        return StudyStore.open(place).trials() if (place / "trials.parquet").exists() else []

    deadline = time.monotonic() + 600
    while not any(row.epochs for row in rows()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.2)
    inner = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    os.kill(inner, signal.SIGUSR1)
    said, _ = process.communicate(timeout=300)
    assert process.returncode not in (0, 2), said
    assert "scontrol requeue 4711" in job.notes, said
    states = [row.state for row in rows()]
    assert "INTERRUPTED" in states, said
    assert "RUNNING" not in states, said

    process = job.start("tiny.yaml", wrap=in_own_world)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    assert [(row.state, row.epochs) for row in rows()] == [("COMPLETE", 6)] * 4, said
