import json
import math
import os
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import all as all_benchmarks
from benchmarks import epoch, evaluate, input_pipeline, measure, postprocess, train_step
from benchmarks.cells import grid_sample
from benchmarks.gpu import Utilisation, calls_of
from cellseg.data.detections import Detections
from cellseg.data.planes import read_instances
from cellseg.errors import UserError
from cellseg.files import read_json

RATIOS = {
    "input_pipeline": {"time", "time_same_transforms", "growth_100_to_800"},
    "postprocess": {"time", "memory"},
    "train_step": {"time_20", "memory_20", "time_16", "memory_16"},
    "epoch": {"time", "reported"},
    "evaluate": {"time"},
    "prediction": {"time"},
    "proposal_recall": {"time"},
}

NETWORKS = {"train_step", "epoch", "prediction"}
"""Even their toys train a network."""

linux_only = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="memory is measured on Linux")


@linux_only
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in NETWORKS else []) for name in RATIOS]
)
def test_a_benchmark_writes_its_ratios_and_where_they_come_from(name, tmp_path):
    # In a process of its own: here, what earlier tests freed would be used again, and the peak not be seen to rise.
    command = [sys.executable, "-m", f"benchmarks.{name}", "--toy", "--json", str(tmp_path / "out.json")]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    report = read_json(tmp_path / "out.json")
    assert report["benchmark"] == name
    assert report["ratios"].keys() == RATIOS[name]
    assert all(ratio > 0 for ratio in report["ratios"].values())
    assert all(times and min(times) > 0 for times in report["seconds"].values())
    assert {contender.split(",")[0] for contender in report["seconds"]} >= {"ours", "reference"}
    assert report["versions"].keys() >= {"python", "torch", "pycocotools"}
    assert report["hardware"].keys() == {"cpu", "cores", "memory_gb", "torch_threads", "gpu"}
    assert all(ratio in out for ratio in RATIOS[name])


@pytest.mark.parametrize("seed", range(12))
def test_cells_of_planes_are_those_of_a_stack_after_the_same_change(seed):
    sample = grid_sample(np.random.default_rng(seed), 40, 130, 160)
    masks_NHW = input_pipeline.masks_of(sample)
    [(boxes_N4, labels_N)] = input_pipeline.same_transforms_way(sample, masks_NHW, [seed])()
    expected_N4, expected_N = input_pipeline.cells_of_planes(sample, seed)
    assert np.array_equal(boxes_N4, expected_N4)
    assert np.array_equal(labels_N, expected_N)
    assert 10 <= len(labels_N) <= 40


def test_the_reference_augments_as_often_and_as_far_as_ours():
    sample = grid_sample(np.random.default_rng(0), 40, 130, 160)
    masks_NHW = input_pipeline.masks_of(sample)
    seeds = range(30)
    theirs = [len(boxes) for boxes, _ in input_pipeline.stack_way(sample, masks_NHW, seeds)()]
    ours = [len(input_pipeline.cells_of_planes(sample, seed)[0]) for seed in seeds]
    assert np.mean(theirs) == pytest.approx(np.mean(ours), rel=0.15)
    assert len(set(theirs)) > 5


def test_boxes_of_masks_leave_out_cells_too_small_to_train_on():
    masks_NHW = np.zeros((3, 8, 9), np.uint8)
    masks_NHW[0, 1:4, 2:7] = 1
    masks_NHW[2, 0, :3] = 1
    boxes_N4, labels_N = input_pipeline.boxes_of_masks(masks_NHW, np.array([5, 6, 7]))
    assert boxes_N4.tolist() == [[2, 1, 7, 4]]
    assert labels_N.tolist() == [5]


@pytest.mark.parametrize("num_cells", [1, 160, 800])
def test_a_grid_holds_all_its_cells_in_one_plane(num_cells):
    sample = grid_sample(np.random.default_rng(0), num_cells, 400, 480)
    cells = read_instances(sample.planes_PHW, sample.labels_N)
    assert sample.planes_PHW.shape == (1, 400, 480)
    assert cells.numbers_N.tolist() == list(range(1, num_cells + 1))
    assert cells.areas_N.min() > 40


def test_masks_of_a_sample_are_its_cells():
    sample = grid_sample(np.random.default_rng(0), 7, 60, 70)
    masks_NHW = input_pipeline.masks_of(sample)
    numbers_N11 = np.arange(1, 8)[:, None, None]
    assert np.array_equal((masks_NHW * numbers_N11).sum(axis=0), sample.planes_PHW[0])


def test_figures_compared_with_pycocotools_are_neither_zero_nor_perfect():
    rng = np.random.default_rng(0)
    truths = [Detections.from_sample(grid_sample(rng, 50, 400, 480)) for _ in range(2)]
    predictions = [evaluate.imperfect(rng, truth) for truth in truths]
    figures = evaluate.reference(*evaluate.coco_objects(predictions, truths))
    ours = evaluate.evaluate(predictions, truths, evaluate.CLASSES)
    assert 0.05 < figures["segm/AP"] < figures["segm/AP50"] < 0.95
    assert {name: ours[name] for name in figures} == pytest.approx(figures, abs=1e-12)


@linux_only
def test_wrong_figures_and_rles_stop_a_benchmark(monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "evaluate", lambda *_: defaultdict(lambda: 0.5))
    assert evaluate.main(["--toy"]) == 1
    assert "figures must be the same" in capsys.readouterr().err
    monkeypatch.setattr(postprocess, "paste_masks", lambda *_: [])
    assert postprocess.main(["--toy"]) == 1
    assert "RLEs must be the same" in capsys.readouterr().err


def test_a_reference_that_does_not_fit_into_memory_is_refused(monkeypatch, capsys):
    monkeypatch.setattr(postprocess, "available_bytes", lambda: 5_000_000_000)
    assert postprocess.main([]) == 2
    assert "the reference needs 11.22 GB, but got 5.00 GB" in capsys.readouterr().err


def test_contenders_take_turns_and_the_order_turns_round():
    calls = []
    contenders = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    measured = measure.alternate(contenders, rounds=3, per_round={"a": 2})
    assert "".join(calls) == "aab" + "baa" + "aab"
    assert {name: len(times) for name, times in measured.seconds.items()} == {"a": 6, "b": 3}


@linux_only
def test_peak_memory_is_that_of_the_run_and_not_of_what_was_there_before():
    there_before = np.ones(20_000_000, np.uint8)
    contenders = {"small": lambda: np.ones(3_000_000, np.uint8).sum(), "large": lambda: np.ones(60_000_000, np.uint8)}
    measured = measure.alternate(contenders, rounds=2, memory="cpu")
    assert measured.peak_extra_bytes["large"] == pytest.approx(60e6, rel=0.05)
    assert measured.peak_extra_bytes["small"] < 6e6
    assert there_before.size == 20_000_000
    assert measured.memory_ratio("large", "small") > 10


def test_networks_compared_have_the_same_losses(monkeypatch):
    ours, theirs = {"loss_mask": 0.5, "loss_dice": 1.0}, {"loss_mask": 0.5001}
    train_step.assert_alike(ours, theirs)
    with pytest.raises(AssertionError, match="loss_mask"):
        train_step.assert_alike(ours, {"loss_mask": 0.51})


def test_a_stacked_image_has_a_mask_for_each_box(tmp_path):
    images = epoch.StackedImages(epoch.generated(tmp_path, images=4, side=64), (0, 3))
    image_CHW, target = images[1]
    assert len(images) == 2
    assert image_CHW.shape[0] == 3
    assert target["masks"].shape == (len(target["boxes"]), *image_CHW.shape[1:])
    assert len(target["labels"]) == len(target["boxes"]) > 0
    for mask_HW, (left, top, right, bottom) in zip(target["masks"], target["boxes"].int().tolist(), strict=True):
        assert mask_HW.sum() == mask_HW[top:bottom, left:right].sum() >= 4


def test_a_gpu_is_read_while_a_function_runs(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho $1 >&2\necho 90\necho 80\necho '[N/A]'\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    utilisation = Utilisation(torch.device("cuda", 1))
    watched = utilisation.during(lambda: time.sleep(0.5) or "result")
    assert watched() == "result"
    assert utilisation.mean() == pytest.approx(0.85)
    on_cpu = Utilisation(torch.device("cpu"))
    assert on_cpu.during(len) is len
    assert math.isnan(on_cpu.mean())


def test_what_a_step_asks_of_a_gpu_is_counted():
    values = torch.arange(4.0)

    def step() -> None:
        if float((values + 1).sum()) > 0:  # two operators, and the host waits once
            values.nonzero()

    assert calls_of(step, torch.device("cpu")) == (4, 2)  # the number is read, and the places are counted


@pytest.mark.slow
def test_trials_side_by_side_are_measured(tmp_path):
    command = [sys.executable, "-m", "benchmarks.shared_gpu", "--toy", "--device", "cpu"]
    subprocess.run([*command, "--json", str(tmp_path / "out.json")], check=True)
    report = read_json(tmp_path / "out.json")
    assert report["ratios"].keys() == {"gain_2"}
    assert [len(times) for times in report["seconds"].values()] == [1, 2]
    assert all(figure > 0 for figure in report["figures"].values())


def test_only_a_machine_with_a_gpu_runs_its_benchmarks_and_writes_its_page(tmp_path, monkeypatch):
    ran = []
    report = measure.Report("x", "X", {}, {"ours": [1.0]}, {}).as_json()
    monkeypatch.setattr(all_benchmarks, "_report", lambda name, *_: (ran.append(name), report)[1])
    monkeypatch.setattr(all_benchmarks, "GPU_PAGE", tmp_path / "gpu.md")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert all_benchmarks.main([]) == 0
    assert tuple(ran) == all_benchmarks.BENCHMARKS and not (tmp_path / "gpu.md").exists()
    ran.clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert all_benchmarks.main([]) == 0
    assert tuple(ran) == (*all_benchmarks.BENCHMARKS, *all_benchmarks.GPU_BENCHMARKS)
    assert (tmp_path / "gpu.md").read_text().startswith("# Benchmarks")


def test_a_gpu_without_nvidia_smi_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="nvidia-smi: must be there"):
        Utilisation(torch.device("cuda")).during(int)()


def test_ratios_are_those_of_medians():
    measured = measure.Measurement({"a": [1.0, 9.0, 4.0], "b": [2.0]}, {"a": 1 << 22, "b": 10}, {})
    assert measured.ratio("a", "b") == 2.0
    assert measured.memory_ratio("a", "b") == 4.0


def test_the_page_shows_every_ratio_and_every_contender():
    report = measure.Report(
        benchmark="postprocess",
        description="Encode 400 masks",
        parameters={},
        seconds={"ours": [0.04, 0.05, 0.03], "reference": [39.0]},
        ratios={"time": 975.0, "growth": 1.0834, "memory": 12345.6},
        figures={"images_per_second": 24.06},
        peak_extra_bytes={"ours": 120_000, "reference": 9_970_000_000},
    )
    page = all_benchmarks.markdown([json.loads(json.dumps(report.as_json()))])
    for line in (
        "| postprocess | time | 975 |",
        "| postprocess | growth | 1.08 |",
        "| postprocess | memory | 12,346 |",
        "| postprocess | images_per_second | 24.1 |",
        "| postprocess | ours | 40 ms | 30 ms | 50 ms | 3 | 0.1 MB |",
        "| postprocess | reference | 39.00 s | 39.00 s | 39.00 s | 1 | 9.97 GB |",
        "- postprocess: Encode 400 masks.",
    ):
        assert line in page.splitlines()


@linux_only
@pytest.mark.slow
def test_all_benchmarks_write_one_page(tmp_path):
    assert all_benchmarks.main(["--toy", "--only", *RATIOS, "--out", str(tmp_path / "cpu.md")]) == 0
    page = (tmp_path / "cpu.md").read_text()
    assert all(f"| {name} | {ratio} | " in page for name, ratios in RATIOS.items() for ratio in ratios)


@pytest.mark.parametrize("arguments", [["--rounds", "0"], ["--cells", "-3"], ["--cells", "x"]])
def test_counts_must_be_positive(arguments, capsys):
    with pytest.raises(SystemExit):
        evaluate.main(arguments)
    assert arguments[0] in capsys.readouterr().err


def test_the_load_of_the_driver_is_that_of_a_search_which_goes_on():
    from benchmarks.driver_load import measure_load

    load = measure_load(trials=40, gpus=8, seconds=120.0)
    assert 12 <= load.counts["report"] <= 20, "an epoch takes a minute, more or less"
    assert load.counts["propose"] >= 1
    assert 0 < load.share < 1
    assert load.share == pytest.approx(sum(load.processor_seconds.values()) / 120)
