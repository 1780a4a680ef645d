"""What a dry run finds out."""

import sys

import pytest
import torch
from spacefiles import HEAD

import cellseg.model.build
from cellseg.config import InferenceConfig, ModelConfig
from cellseg.errors import UserError
from search.plan import (
    NUM_SAMPLES,
    WEIGHTLESS,
    build_extremes,
    build_models,
    cover,
    describe_cost,
    describe_models,
    expected_cost,
    never_drawn,
    sample_params,
    without_data,
)
from search.run import main
from search.space import AshaSettings, Choices, Range, Space

TINY = {
    "model.backbone": "resnet10t",
    "model.weights": "none",
    "model.fpn_channels": 8,
    "model.box_head_width": 16,
    "model.mask_head_layers": 1,
    "model.mask_head_width": 8,
}
WIDTHS = {
    "model.box_head_width": Choices(choices=(16, 64)),
    "model.mask_head_layers": Range(low=1, high=3, integer=True),
    "optim.lr": Range(low=1e-4, high=1e-3),
}


def make(domains=None, fixed=TINY, **settings) -> Space:
    settings = {"trials": 9, "epochs": 9} | settings
    return Space(metric="segm/AP50", domains=domains or WIDTHS, fixed=fixed, **settings)


def tiny(**values) -> ModelConfig:
    return ModelConfig(**{key.removeprefix("model."): value for key, value in TINY.items()} | values)


@pytest.mark.parametrize(
    ("trials", "epochs", "grace", "trials_at", "total", "full"),
    [
        (9, 9, 1, {1: 9, 3: 3, 9: 1}, 9 * 1 + 3 * 2 + 1 * 6, 81),
        (40, 50, 3, {3: 40, 9: 40 / 3, 27: 40 / 9, 50: 40 / 27}, 40 * (3 + 6 / 3 + 18 / 9 + 23 / 27), 2000),
        (2, 9, 1, {1: 2, 3: 1, 9: 1}, 2 + 2 + 6, 18),  # the first to reach a rung goes on
        (5, 4, 4, {4: 5}, 20, 20),
    ],
)
def test_the_expected_cost_is_that_of_one_survivor_in_reduction(trials, epochs, grace, trials_at, total, full):
    cost = expected_cost(make(trials=trials, epochs=epochs, asha=AshaSettings(grace=grace, reduction=3)))
    assert cost.trials_at == pytest.approx(trials_at)
    assert (cost.epochs, cost.full_epochs) == (pytest.approx(total), full)


def test_the_cost_is_told_in_epochs_and_arrivals():
    assert describe_cost(make(trials=40, epochs=50, asha=AshaSettings(grace=3, reduction=3))) == [
        "cost: 40 trials, about 314 epochs, 16 % of 2,000",
        "rungs: about 40 trials reach epoch 3, 13 reach epoch 9, 4.4 reach epoch 27, 1.5 reach epoch 50",
    ]
    assert describe_cost(make(trials=40, epochs=50, asha=None)) == ["cost: 40 trials, 2,000 epochs"]


def test_samples_begin_with_the_start_configs_and_are_always_the_same():
    space = make(start_from=({"optim.lr": 5e-4},))
    samples = sample_params(space)
    assert len(samples) == NUM_SAMPLES
    assert samples[0]["optim.lr"] == 5e-4
    assert all(params.keys() == WIDTHS.keys() for params in samples)
    assert samples == sample_params(space)


def test_a_space_without_sampled_keys_has_one_sample():
    assert sample_params(Space(metric="segm/AP50", trials=1, epochs=1, domains={}, fixed=TINY)) == [{}]


def test_every_problem_of_the_samples_is_told_once():
    domains = {
        "model.norm": Choices(choices=("auto", "group")),
        "optim.momentum": Range(low=0.1, high=0.9),
        "data.fold": Range(low=0, high=9, integer=True),
    }
    with pytest.raises(UserError) as caught:
        sample_params(make(domains, fixed={}))
    assert [problem.split(", but got")[0] for problem in caught.value.problems] == [
        "optim.momentum: only matters for optim.optimizer sgd",
        "data.fold: fold < num_folds must hold",
        "model.norm: imagenet weights need batch statistics",
    ]


def test_what_is_never_drawn_is_named():
    domains = WIDTHS | {"train.batch_size": Choices(choices=(1, 2), when={"model.box_head_width": (64,)})}
    samples = [{"model.box_head_width": 16, "model.mask_head_layers": 2, "optim.lr": 1e-3}]
    assert never_drawn(make(domains), samples) == ["model.box_head_width=64", "train.batch_size"]
    assert never_drawn(make(domains), sample_params(make(domains))) == []


def test_stand_ins_take_the_place_of_what_the_data_would_say():
    model = without_data(ModelConfig(normalization="dataset"))
    assert (model.anchors, model.detections_per_image, model.normalization) == ("8-128", 100, "imagenet")
    assert (model.rpn_candidates, model.rpn_proposals) == (1000, 1000)
    numbers = {"detections_per_image": 7, "rpn_candidates": 8, "rpn_proposals": 9}
    given = ModelConfig(anchors="4-64", normalization="none", **numbers)
    assert without_data(given) == given


def test_a_cover_shows_every_value_of_every_field_with_few_models():
    backbones = ("resnet18", "resnet34", "resnet50", "convnext_tiny")
    models = [
        ModelConfig(backbone=b, frozen_stages=f, detector=d) for b in backbones for f in range(4) for d in ("v1", "v2")
    ]
    chosen = cover(models)
    for name in ("backbone", "frozen_stages", "detector"):
        assert {getattr(model, name) for model in chosen} == {getattr(model, name) for model in models}
    assert len(chosen) == 4


def test_of_a_range_a_cover_shows_the_ends():
    models = [ModelConfig(rpn_candidates=n) for n in (700, 500, 900, 600, 800)]
    assert [model.rpn_candidates for model in cover(models, {"rpn_candidates"})] == [500, 900]


def test_equal_models_are_covered_by_one():
    assert cover([ModelConfig()] * 3) == [ModelConfig()]


def test_models_have_the_size_that_building_them_in_earnest_gives():
    models = [tiny(), tiny(box_head_width=32), tiny(box_head_width=64)]
    sizes = build_models(models)
    build_model, count = cellseg.model.build.build_model, cellseg.model.build.count_parameters
    assert list(sizes.values()) == [
        count(build_model(model, InferenceConfig(), 4, load=False), trainable=True) for model in sizes
    ]
    assert describe_models(sizes).startswith("models: 3 built, ")
    assert describe_models({tiny(): 1234}) == "models: 1 built, 1,234 trainable parameters"


def test_only_the_smallest_and_the_largest_take_memory_and_no_weights_are_loaded(monkeypatch):
    built, build_model = [], cellseg.model.build.build_model

    def recorded(model, inference, num_classes, *, load):
        built.append((torch.get_default_device().type, model.box_head_width, load))
        return build_model(model, inference, num_classes, load=load)

    monkeypatch.setattr(cellseg.model.build, "build_model", recorded)
    build_models([tiny(box_head_width=width) for width in (32, 16, 64, 32)])
    assert built[:3] == [("meta", 32, False), ("meta", 16, False), ("meta", 64, False)]
    assert sorted(built[3:]) == [("cpu", 16, False), ("cpu", 64, False)]


def test_models_that_cannot_be_built_are_told_once_with_their_values():
    models = [tiny(box_head_width=width, max_trainable=1000) for width in (16, 16)] + [tiny()]
    with pytest.raises(UserError) as caught:
        build_models(models)
    (problem,) = caught.value.problems
    assert problem.startswith("model.max_trainable: at most 1,000 trainable parameters are allowed")
    assert "Seen with backbone=resnet10t, weights=none, " in problem


def test_the_extremes_show_every_sampled_value_and_the_largest_model_of_the_space():
    space = make()
    sizes = build_extremes(space, sample_params(space, 50))
    assert {model.box_head_width for model in sizes} == {16, 64}
    assert {1, 3} <= {model.mask_head_layers for model in sizes}
    largest = max(sizes, key=sizes.__getitem__)
    assert (largest.box_head_width, largest.mask_head_layers) == (64, 3)


def test_the_largest_model_is_found_beyond_the_samples():
    space = make()
    sizes = build_extremes(space, [{"model.box_head_width": 16, "model.mask_head_layers": 1, "optim.lr": 1e-3}])
    largest = max(sizes, key=sizes.__getitem__)
    assert (largest.box_head_width, largest.mask_head_layers) == (64, 3)


def test_fields_that_are_passed_by_on_that_way_do_not_change_the_size():
    values = {
        "normalization": "none",
        "roi_levels": "0,1",
        "rpn_candidates": 10,
        "rpn_proposals": 10,
        "rpn_nms_threshold": 0.5,
        "rpn_samples": 10,
        "rpn_positive_fraction": 0.25,
        "rpn_assignment": "atss",
        "rpn_foreground_iou": 0.6,
        "rpn_background_iou": 0.4,
        "rpn_atss_places": 4,
        "rpn_best_anchor": False,
        "roi_samples": 10,
        "roi_positive_fraction": 0.5,
        "point_samples": 10,
        "point_doublings": 3,
        "detections_per_image": 10,
        "max_trainable": 10**9,
    }
    assert values.keys() == WEIGHTLESS
    assert len(set(build_models([tiny(mask_head="pointrend"), tiny(mask_head="pointrend", **values)]).values())) == 1


def test_the_way_to_the_largest_model_keeps_the_conditions_of_the_space():
    domains = {
        "model.detector": Choices(choices=("v1", "v2")),
        "model.box_head_width": Choices(choices=(16, 64), when={"model.detector": ("v1",)}),
        "model.mask_head_width": Choices(choices=(8, 16), when={"model.detector": ("v2",)}),
    }
    space = make(domains, fixed={k: v for k, v in TINY.items() if k not in domains} | {"model.box_head_width": 8})
    sizes = build_extremes(space, [{"model.detector": "v1", "model.box_head_width": 16}])
    for model in sizes:
        assert model.box_head_width == 8 if model.detector == "v2" else model.mask_head_width == 256


def test_a_space_that_samples_nothing_of_the_model_builds_one():
    space = make({"optim.lr": Range(low=1e-4, high=1e-3)})
    assert len(build_extremes(space, sample_params(space, 20))) == 1


def dry_run(tmp_path, text: str, *arguments: str) -> int:
    path = tmp_path / "cells.yaml"
    path.write_text(text)
    return main([str(path), "--dry-run", *arguments])


SPACE = (
    HEAD
    + "space:\n  model.box_head_width: {choices: [16, 64]}\n"
    + "".join(f"  {key}: {value}\n" for key, value in TINY.items() if key != "model.box_head_width")
)


def test_a_dry_run_tells_the_plan_and_writes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)  # importing it fails
    assert dry_run(tmp_path, SPACE) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[:2] == ["study cells", "maximize segm/AP50: 8 trials of 9 epochs, seed 0"]
    assert lines[-4:-1] == [
        "cost: 8 trials, about 21 epochs, 29 % of 72",
        "rungs: about 8 trials reach epoch 1, 4 reach epoch 2, 2 reach epoch 4, 1 reach epoch 8, 1 reach epoch 9",
        "configs: 500 sampled, all valid",
    ]
    assert lines[-1].startswith("models: 2 built, ")
    assert err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["cells.yaml"]


def test_a_dry_run_ends_with_the_problem_where_a_model_cannot_be_built(tmp_path, capsys):
    assert dry_run(tmp_path, SPACE + "  model.max_trainable: 1000\n") == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: model.max_trainable: at most 1,000 trainable parameters")
    assert "configs: 500 sampled, all valid" in out
    assert "Traceback" not in err


def test_a_minimised_metric_is_planned_like_any_other(tmp_path, capsys):
    assert dry_run(tmp_path, SPACE, "--set", "metric=loss/validation", "--set", "direction=minimize") == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("minimize loss/validation")
