"""Which pretrained weights an experiment can ask for, and how they are had before its first trial."""

import hashlib
import io
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import huggingface_hub
import numpy as np
import pytest
from spacefiles import HEAD, LR, parse, problems_of

from cellseg.errors import UserError
from cellseg.model.pretrained import Published
from search.ablation import parse_ablation
from search.commands.weights import main as weights
from search.plan import never_drawn, sample_params
from search.run import main as run
from search.space import load_space
from search.space.shipped import shipped_spaces
from search.study import weights as module
from search.study.possible import possible_values, starts_from_weights, untrained_stages
from search.study.weights import asked_weights, provide_weights

KEYS = ("model.weights", "model.backbone", "model.detector")
COCO_V1 = "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"


@pytest.fixture(autouse=True)
def caches(monkeypatch, tmp_path) -> Path:
    """Empty caches, and no network; the folder of torch's cache."""

    def refuse(self, request, *_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.OpenerDirector.open", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    return tmp_path / "torch"


def space_of(lines: str):
    return parse(HEAD + "space:\n" + LR + "".join(f"  {line}\n" for line in lines.strip().splitlines()))


def asked_of(lines: str) -> list[str]:
    return [file.name for file in asked_weights(space_of(lines)).files]


@pytest.mark.parametrize(
    ("lines", "files"),
    [
        ("model.weights: none", []),
        ("model.backbone: resnet18", ["resnet18-f37072fd.pth"]),  # imagenet is the default
        ("model.weights: coco", [COCO_V1]),
        ("model.weights: {choices: [none, imagenet]}\nmodel.backbone: resnet34", ["resnet34-b627a593.pth"]),
        (
            "model.weights: {choices: [imagenet, coco]}\n"
            "model.backbone: {choices: [resnet18, 'timm:regnety_004'], when: {model.weights: imagenet}}\n"
            "model.detector: {choices: [v1, v2]}",
            [
                "resnet18-f37072fd.pth",
                "timm--regnety_004.tv2_in1k",
                COCO_V1,
                "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth",
            ],
        ),
        # A condition on a number inside a range: other backbones than the default are possible beside this one only.
        (
            "train.batch_size: {low: 1, high: 16}\n"
            "model.backbone: {choices: [resnet18, resnet34], when: {train.batch_size: 8}}",
            ["resnet50-0676ba61.pth", "resnet18-f37072fd.pth", "resnet34-b627a593.pth"],
        ),
    ],
)
def test_a_space_asks_for_what_its_trials_may_need(lines, files):
    assert asked_of(lines) == files


def test_every_sampled_config_finds_its_file_among_those_asked_for():
    space = load_space(shipped_spaces()["full"])
    possible = {tuple(values[key] for key in KEYS) for values in possible_values(space, KEYS)}
    drawn = {tuple(space.values(params)[key] for key in KEYS) for params in sample_params(space, 400)}
    assert drawn == possible
    assert len(asked_weights(space).files) == 11 + 2


def test_an_ablation_asks_for_what_its_rows_need():
    rows = {"a": {}, "b": {"config": {"model.backbone": "resnet34"}}, "c": {"config": {"model.weights": "none"}}}
    content = {"title": "t", "source": "s", "metric": "segm/AP50", "direction": "maximize", "measured": ["segm/AP50"]}
    table = parse_ablation(content | {"common": {"model.backbone": "resnet18"}, "rows": rows}, "a.yaml")
    assert [file.name for file in asked_weights(table).files] == ["resnet18-f37072fd.pth", "resnet34-b627a593.pth"]
    chosen = table.model_copy(update={"selected": ("c",)})
    assert asked_weights(chosen).files == () and not starts_from_weights(chosen)


def test_networks_that_timm_lacks_are_reported_at_once():
    with pytest.raises(UserError) as raised:
        asked_of("model.backbone: {choices: ['timm:resnett50', 'timm:darknet17', resnet18]}")
    assert len(raised.value.problems) == 2
    assert "but got 'resnett50'" in str(raised.value) and "but got none for darknet17" in str(raised.value)


# Frozen stages


def test_freezing_what_was_never_trained_is_refused():
    (problem,) = untrained_stages(
        space_of("model.weights: {choices: [none, imagenet]}\nmodel.frozen_stages: {choices: [0, 2, 3]}")
    )
    assert str(problem) == (
        "model.frozen_stages: frozen stages need pretrained weights, but got frozen_stages=3 with weights=none, whose "
        "stages are random. Add when: {model.weights: [...]} with the pretrained ones, or leave the key out."
    )
    assert untrained_stages(space_of("model.weights: none\nmodel.frozen_stages: {low: 0, high: 4}"))
    bound = "model.weights: {choices: [none, imagenet]}\n"
    bound += "model.frozen_stages: {choices: [0, 2], when: {model.weights: imagenet}}"
    assert untrained_stages(space_of(bound)) == []
    assert untrained_stages(space_of("model.weights: none\nmodel.frozen_stages: 0")) == []


@pytest.mark.parametrize("options", [["--dry-run"], ["--data", "."]])
def test_the_command_refuses_frozen_random_stages(tmp_path, monkeypatch, capsys, options):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("search.plan.describe_plan", lambda experiment: [])
    Path("a.yaml").write_text(f"{HEAD}space:\n{LR}  model.weights: none\n  model.frozen_stages: 2\n")
    assert run(["a.yaml", *options]) == 2
    assert "model.frozen_stages: frozen stages need pretrained weights" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.yaml"]


# full.yaml without weights


def test_the_full_space_is_sensible_without_weights():
    space = load_space(shipped_spaces()["full"], ["model.weights=none"])
    samples = sample_params(space)
    keys = {key for params in samples for key in params}
    assert len({params["model.backbone"] for params in samples}) == 11
    gone = {"model.weights", "model.frozen_stages", "model.norm", "optim.backbone_lr_factor"}
    assert keys == set(load_space(shipped_spaces()["full"]).domains) - gone
    assert never_drawn(space, samples) == []
    assert not starts_from_weights(space) and untrained_stages(space) == []
    assert [start.get("model.backbone") for start in space.start_from] == ["resnext101_32x8d", None]
    assert {space.config(params, seed=0).model.norm for params in samples} == {"auto"}  # group norm


def test_the_full_space_with_weights_draws_as_before():
    space = load_space(shipped_spaces()["full"])
    rng = np.random.default_rng(0)
    draws = [space.sample(rng) for _ in range(300)]
    assert all(("model.backbone" in params) == (params["model.weights"] == "imagenet") for params in draws)
    assert all("model.frozen_stages" in params for params in draws)


def test_a_condition_may_name_none_of_weights_and_nothing_else_that_is_not_sampled():
    lines = "  model.weights: {choices: [coco, imagenet]}\n"
    backbone = "  model.backbone: {{choices: [resnet18, resnet34], when: {{model.weights: [imagenet, {}]}}}}\n"
    assert parse(f"{HEAD}space:\n{lines}{backbone.format('none')}").domains["model.backbone"].when
    (problem,) = problems_of(f"{HEAD}space:\n{lines}{backbone.format('nnoe')}")
    assert "when must name a value that model.weights can take, but got 'nnoe'" in problem


# Before the first trial


def test_all_that_cannot_be_had_is_one_report_before_ray_starts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "search.cluster.driver", None)  # importing it fails
    monkeypatch.setitem(sys.modules, "search.cluster.connect", None)
    Path("data").mkdir()
    assert run(["full", "--data", "data"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 13 + 1
    assert (
        f"error: model.weights: {COCO_V1} (COCO weights of detector v1, 170 MB) must be in a cache or downloadable, "
        "but got 'no route to host' from download.pytorch.org."
    ) in lines
    assert lines[-1].startswith(
        "error: model.weights: all weights that a trial may start from must be had before the first trial, but got 13 "
        "of 13 missing. Run `python -m search.commands.weights SPACE --to DIR` on a machine with a network and copy "
        f"the content of DIR to {tmp_path}/results/pretrained, or set TORCH_HOME to the copy; or train without: "
        "--set model.weights=none"
    )
    assert not (tmp_path / "results").exists()


def test_a_machine_that_does_not_answer_is_asked_once(tmp_path, monkeypatch):
    asked = []

    def fetch(file, folder, progress):
        asked.append(file.host)
        raise URLError("no route to host")

    monkeypatch.setattr(module, "fetch", fetch)
    with pytest.raises(UserError):
        provide_weights(load_space(shipped_spaces()["full"]), tmp_path, travel=False, say=print)
    assert sorted(asked) == ["download.pytorch.org", "huggingface.co"]


def test_a_path_that_is_not_there_is_in_the_report(tmp_path):
    space = space_of("model.weights: {choices: [nowhere/best, imagenet]}\nmodel.backbone: resnet18")
    with pytest.raises(UserError) as raised:
        provide_weights(space, tmp_path, travel=False, say=print)
    assert len(raised.value.problems) == 3
    assert "the file or checkpoint folder must exist, but got nothing at 'nowhere/best'" in raised.value.problems[-1]


class Answer(io.BytesIO):
    """An answer without a length, as some servers give."""

    def __init__(self, body: bytes):
        super().__init__(body)
        self.headers: dict[str, str] = {}


class Publisher:
    """Stands for the networks' publishers: small files in place of theirs."""

    def __init__(self, monkeypatch):
        self.bodies = {name: name.encode() * 9 for name in ("resnet18", "resnet34")}
        self.fetched: list[str] = []
        monkeypatch.setattr(module, "published_weights", self.published)
        monkeypatch.setattr("urllib.request.OpenerDirector.open", self.open)

    def published(self, weights, backbone, detector):
        if weights == "none":
            return None
        digits = hashlib.sha256(self.bodies[backbone]).hexdigest()[:8]
        name = f"{backbone}-{digits}.pth"
        return Published(f"ImageNet weights of {backbone}", name, (f"http://publisher/{name}",))

    def open(self, request, *_, **__):
        name = request.full_url.rsplit("/", 1)[-1]
        self.fetched.append(name)
        return Answer(self.bodies[name.split("-")[0]])


SPACE = f"{HEAD}space:\n{LR}  model.backbone: {{choices: [resnet18, resnet34]}}\n"


def files_in(folder: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in (folder / "hub" / "checkpoints").glob("*.pth"))


def test_what_is_missing_is_fetched_once_and_travels_to_the_results(tmp_path, monkeypatch, caches):
    publisher, said = Publisher(monkeypatch), []
    for _ in range(2):
        provide_weights(parse(SPACE), tmp_path / "results", travel=False, say=said.append)
    assert len(publisher.fetched) == len(said) == 2
    assert "the ImageNet weights of resnet18" in said[0]
    assert files_in(caches) == ["resnet18", "resnet34"]
    assert not (tmp_path / "results").exists()
    provide_weights(parse(SPACE), tmp_path / "results", travel=True, say=said.append)
    assert files_in(tmp_path / "results" / "pretrained") == ["resnet18", "resnet34"]
    assert len(publisher.fetched) == 2


def test_a_damaged_file_beside_the_studies_is_replaced_as_trials_look_there_first(tmp_path, monkeypatch):
    publisher = Publisher(monkeypatch)
    provide_weights(parse(SPACE), tmp_path, travel=True, say=print)
    spoilt = next((tmp_path / "pretrained").rglob("resnet18-*"))
    spoilt.write_bytes(b"spoilt")
    (tmp_path / "torch" / "hub" / "checkpoints" / spoilt.name).unlink()
    provide_weights(parse(SPACE), tmp_path, travel=False, say=print)
    assert spoilt.read_bytes() == publisher.bodies["resnet18"]


def test_the_folder_of_weights_is_the_studys_to_set():
    (problem,) = problems_of(f"{HEAD}space:\n{LR}  model.weights_folder: /x\n")
    assert "model.weights_folder: is set by the study" in problem


# The command


def test_the_command_fills_a_folder_for_a_machine_without_a_network(tmp_path, monkeypatch, capsys):
    publisher = Publisher(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(SPACE)
    assert weights(["a.yaml", "--check"]) == 2
    assert capsys.readouterr().out.count("missing  ") == 2
    assert weights(["a.yaml", "--to", "box"]) == 0
    assert files_in(Path("box")) == ["resnet18", "resnet34"] and len(publisher.fetched) == 2
    assert "Copy its content to results/pretrained" in capsys.readouterr().out
    # On the other machine:
    Path("results").mkdir()
    Path("box").rename("results/pretrained")
    monkeypatch.setattr("urllib.request.OpenerDirector.open", None)
    assert weights(["a.yaml", "--check"]) == 0
    provide_weights(parse(SPACE), Path("results"), travel=False, say=print)


def test_the_command_takes_what_the_cache_has(tmp_path, monkeypatch, capsys, caches):
    publisher = Publisher(monkeypatch)
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(SPACE)
    assert weights(["a.yaml"]) == 0
    assert files_in(caches) == ["resnet18", "resnet34"]
    assert weights(["a.yaml", "--to", "box"]) == 0
    assert files_in(Path("box")) == ["resnet18", "resnet34"] and len(publisher.fetched) == 2
    next(Path("box").rglob("resnet18-*")).write_bytes(b"spoilt")
    capsys.readouterr()
    assert weights(["a.yaml", "--to", "box", "--check"]) == 2
    out = capsys.readouterr().out
    assert "damaged  box/hub/checkpoints/resnet18-" in out and "1 of 2 files missing or damaged" in out
    assert weights(["a.yaml", "--to", "box"]) == 0


def test_the_command_names_what_cannot_be_had(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(SPACE)
    assert weights(["a.yaml"]) == 2
    out, err = capsys.readouterr()
    assert out.count("'no route to host' from download.pytorch.org") == 2
    assert "got 2 of 2 files missing" in err
    assert weights(["a.yaml", "--set", "model.weights=none"]) == 0
    assert "No trial of this space starts from published weights." in capsys.readouterr().out


def test_a_dry_run_notes_what_will_be_fetched(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("search.plan.describe_plan", lambda experiment: [])
    Path("a.yaml").write_text(SPACE)
    assert run(["a.yaml", "--dry-run"]) == 0
    assert "weights: 2 files of pretrained weights, 2 to be fetched before the first trial" in capsys.readouterr().out


def test_a_start_from_random_weights_asks_nothing_of_torchvision(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "search.study.weights", None)  # importing it fails
    from search.run import _provide_weights

    _provide_weights(space_of("model.weights: none"), SimpleNamespace(results=tmp_path, address=None))
