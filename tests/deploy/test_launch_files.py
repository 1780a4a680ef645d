"""The launch files say what their tools understand, and nothing that only holds on one machine."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
import yaml

from search.run import _parser

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
FILES = [path for path in DEPLOY.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
DEVCONTAINER = ROOT / ".devcontainer" / "devcontainer.json"
DOCKERFILE = DEPLOY / "docker" / "Dockerfile"


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def names(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [path for path in FILES if path.suffix == ".yaml"], ids=names)
def test_yaml_parses(path):
    assert all(isinstance(document, dict) for document in documents(path))


@pytest.mark.parametrize("path", [*FILES, DEVCONTAINER], ids=names)
def test_no_package_index_is_named(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"pypi|whl/|simple/|index-url +http|download\.pytorch|ghcr\.io|quay\.io|gcr\.io|mcr\.", text)
    assert not re.search(r"https?://", text), "pages and files name no addresses of hosts"


@pytest.mark.parametrize("folder", [path for path in DEPLOY.iterdir() if path.is_dir()], ids=names)
def test_every_launch_file_is_walked_through(folder):
    page = (folder / "README.md").read_text(encoding="utf-8")
    launched = [
        path.name for path in folder.iterdir() if path.suffix in {".yaml", ".sbatch", ".py", ""} and path.is_file()
    ]
    assert launched
    assert [name for name in launched if name not in page] == []
    index = (DEPLOY / "README.md").read_text(encoding="utf-8")
    assert f"({folder.name}/README.md" in index


# Shell


SCRIPTS = [path for path in FILES if path.read_text(encoding="utf-8").startswith("#!")]


@pytest.mark.parametrize("path", SCRIPTS, ids=names)
def test_shell_scripts_parse(path):
    done = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("path", SCRIPTS, ids=names)
def test_shellcheck_finds_nothing(path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(["shellcheck", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


# Kubernetes


@pytest.fixture
def rayjob() -> dict[str, Any]:
    return next(each for each in documents(DEPLOY / "kubernetes" / "search.yaml") if each["kind"] == "RayJob")["spec"]


def pods(rayjob: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = rayjob["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_pods_run_one_image_not_as_root_and_share_the_results(rayjob):
    assert len({container["image"] for pod in pods(rayjob) for container in pod["containers"]}) == 1
    claim, *_ = documents(DEPLOY / "kubernetes" / "search.yaml")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(rayjob):
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["results"] == "/results"
        assert mounts["shm"] == "/dev/shm"
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert set(mounts) == set(volumes)
        assert volumes["results"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_job_asks_for_a_token_and_names_the_tested_ray(rayjob):
    cluster = rayjob["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()


def test_the_job_runs_a_search_that_can_be_continued(rayjob):
    words = rayjob["entrypoint"].split()
    assert words[:2] == ["cellseg-search", "run"]
    options = _parser().parse_args(words[2:])
    assert Path(options.results).is_absolute()
    assert options.address == "auto"
    assert options.study is not None, "else it would be the name of the mounted file"
    assert "runtimeEnvYAML" not in rayjob, "a working directory would be a temporary copy"


# ray up


@pytest.mark.parametrize("name", ["machines", "aws"])
def test_ray_takes_the_cluster_files(name):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(documents(DEPLOY / "ray-up" / f"{name}.yaml")[0])
    validate_config(config)
    commands = [*config["setup_commands"], *config["head_setup_commands"], *config["worker_setup_commands"]]
    assert not [command for command in commands if "ray[" in command], "Ray's own commands would install another Ray"
    starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
    options = config.get("docker", {}).get("run_options", [])
    for start in starts:
        if " start" in start:
            assert "RAY_AUTH_MODE=token" in start or "-e RAY_AUTH_MODE=token" in options
            assert "dashboard-host=0.0.0.0" not in start
    assert config["file_mounts"]["~/.ray/auth_token"].endswith(".ray/auth_token")


# Containers


def test_the_dockerfile_keeps_to_the_rules():
    text = DOCKERFILE.read_text(encoding="utf-8")
    lines = re.sub(r"\\\n", " ", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE)).splitlines()
    images = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.MULTILINE))
    stages: set[str] = set()
    for line in lines:
        words = line.split()
        if words[:1] == ["FROM"]:
            image = re.sub(r"\$\{(\w+)\}", lambda match: images[match[1]], words[1])
            assert image in stages or re.fullmatch(r"[\w/.-]+:[\w.-]*\d[\w.-]*", image), f"{image} is not pinned"
            if "AS" in words:
                stages.add(words[-1])
        assert words[:1] != ["ADD"], "ADD fetches addresses and unpacks archives"
        if "pip install" in line:
            assert "-c constraints.txt" in line
        if "apt-get install" in line:
            assert "--no-install-recommends" in line
            assert "rm -rf /var/lib/apt/lists" in line
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users
    assert "root" not in users
    assert "ENTRYPOINT" not in " ".join(lines), "launchers start bash and ray in the image"


def test_hadolint_finds_nothing():
    if shutil.which("hadolint") is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run(["hadolint", "--no-color", DOCKERFILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_the_image_sees_makes_the_package(tmp_path):
    """pip builds a wheel from the files that the ignore file lets through and the Dockerfile copies, and no others."""
    ignored = (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in ignored if line.startswith("!")}
    copied = {
        name
        for names in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE.read_text(), re.MULTILINE)
        for name in names.split()
    }
    assert copied == let_through
    for name in copied:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    command = ["pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path / "wheels"), str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = (tmp_path / "wheels").glob("*.whl")
    names = ZipFile(wheel).namelist()
    assert {"search/run.py", "cellseg/cli.py", "search/spaces/quickstart.yaml"} <= set(names)


EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]


@pytest.mark.parametrize("path", [*FILES, DEVCONTAINER], ids=names)
def test_every_extra_that_is_installed_exists(path):
    text = path.read_text(encoding="utf-8")
    asked = {
        name for listed in re.findall(r"(?:\.|cellseg-search)\[([a-z0-9,]+)\]", text) for name in listed.split(",")
    }
    assert asked <= set(EXTRAS)


def test_the_same_dockerfile_makes_an_image_without_cuda():
    """PyTorch comes before the package, from the index that a build argument names, and is not replaced by it."""
    text = re.sub(r"^ *#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    torch = re.search(
        r"^RUN pip install .*\$\{TORCH_INDEX:\+--extra-index-url .*\} torch torchvision$", text, re.MULTILINE
    )
    package = re.search(r"^RUN pip install .* \. \$\{EXTRA_PACKAGES\}$", text, re.MULTILINE)
    assert torch and package and torch.start() < package.start()
    assert re.search(r'^ARG TORCH_INDEX=""$', text, re.MULTILINE)


def test_the_development_container_works_with_and_without_a_gpu():
    content = json.loads(DEVCONTAINER.read_text())
    assert content["hostRequirements"]["gpu"] == "optional"
    assert "--gpus" not in " ".join(content["runArgs"]), "a container without a GPU could not start"
    assert set(re.findall(r"\.\[([a-z,]+)\]", content["postCreateCommand"])) == {"test"}


def test_the_development_container_builds_a_stage_of_the_dockerfile():
    content = json.loads(DEVCONTAINER.read_text())
    build = content["build"]
    assert (DEVCONTAINER.parent / build["dockerfile"]).resolve() == DOCKERFILE
    assert (DEVCONTAINER.parent / build["context"]).resolve() == ROOT
    text = DOCKERFILE.read_text()
    assert re.search(rf"^FROM \S+ AS {build['target']}$", text, re.MULTILINE)
    assert f"--uid 1000 --shell /bin/bash {content['remoteUser']}" in text
    assert "-c constraints.txt" in content["postCreateCommand"]


@pytest.mark.slow  # downloads gigabytes
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("index", ["", "CELLSEG_CPU_INDEX"])
def test_the_image_builds_and_searches(index):
    """With CUDA; and for CPUs, where the environment variable names an index of PyTorch's CPU builds."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode != 0:
        pytest.skip("no Docker daemon runs here")
    if index and not os.environ.get(index):
        pytest.skip(f"{index} names no index")
    build = ["docker", "build", "-f", str(DOCKERFILE), "-t", "cellseg-search:test", str(ROOT)]
    build += ["--build-arg", f"TORCH_INDEX={os.environ[index]}"] if index else []
    subprocess.run(build, check=True)
    run = ["docker", "run", "--rm", "--init", "--shm-size=2g", "cellseg-search:test"]
    search = ["cellseg-search", "run", "quickstart", "--trials", "1", "--epochs", "1", "--results", "/results"]
    subprocess.run([*run, *search], check=True)
    # A launcher's login shell.
    subprocess.run([*run, "bash", "-lc", "ray --version && cellseg-search --help"], check=True)
