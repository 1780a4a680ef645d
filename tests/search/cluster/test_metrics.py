"""What operators are told of a study, with stand-ins of Ray's instruments; and that the files of deploy/ ask for it."""

import json
import re
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from fakes import empty_table, make_report, make_study

from search.cluster import driver, job_progress, metrics
from search.cluster.job_progress import JobProgress, describe_progress
from search.cluster.job_record import own_job
from search.cluster.metrics import METRICS, SPACE_SECONDS, UPDATE_SECONDS, Metric, StudyMetrics

DEPLOY = Path(__file__).parents[3] / "deploy" / "metrics"


class Instrument:
    """Takes what Ray's Gauge and Counter take."""

    def __init__(self, metric: Metric):
        self.metric = metric
        self.values: dict[tuple[str, ...], float] = {}
        self.calls = 0

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert self.metric.kind == "gauge"
        self._take(value, tags)

    def inc(self, value: float, tags: dict[str, str]) -> None:
        assert self.metric.kind == "counter" and value > 0, "as Ray demands"
        self._take(value + self.values.get(self._key(tags), 0), tags)

    def _key(self, tags: dict[str, str]) -> tuple[str, ...]:
        assert set(tags) == {"study"} | ({self.metric.tag} if self.metric.tag else set())
        assert all(isinstance(value, str) for value in tags.values())
        return tuple(value for name, value in tags.items() if name != "study")

    def _take(self, value: float, tags: dict[str, str]) -> None:
        assert tags["study"] == "cells"
        self.values[self._key(tags)] = value
        self.calls += 1


class Setting:
    """A study, a fleet that is told of, and a clock."""

    def __init__(self, folder: Path):
        self.now = 50.0
        self.study = make_study(folder, "cells", trials=9)
        self.fleet = SimpleNamespace(slots=4, num_losses=Counter())
        self.instruments: dict[str, Instrument] = {}
        self.metrics = StudyMetrics(
            self.study, self.fleet, self._make, name_of=lambda node: f"host-{node}", clock=lambda: self.now
        )

    def _make(self, metric: Metric) -> Instrument:
        self.instruments[metric.name] = Instrument(metric)
        return self.instruments[metric.name]

    def step(self, seconds: float = UPDATE_SECONDS) -> dict[str, Any]:
        self.now += seconds
        self.metrics.on_step_end(1, [])
        return {name.removeprefix("cellseg_"): each.values for name, each in self.instruments.items()}


@pytest.fixture
def setting(tmp_path) -> Setting:
    return Setting(tmp_path)


def test_everything_is_told_as_it_is(setting):
    study = setting.study
    for _ in range(3):
        study.propose()
    for number, value in enumerate((0.25, 0.5)):
        study.report(number, make_report(1, value), "n")
        setting.metrics.on_trial_result(1, [], None, {})
    study.end(0, "epochs")
    study.end(2, "bug", "KeyError")
    told = setting.step()
    assert told["trials"] == {
        ("complete",): 1,
        ("pruned",): 0,
        ("failed",): 1,
        ("infeasible",): 0,
        ("running",): 1,
        ("interrupted",): 0,
    }
    assert told["finished_trials"] == {(): study.num_finished} == {(): 1}
    assert told["target_trials"] == {(): 9}
    assert told["best_value"] == {("segm/AP50",): 0.5}
    assert (told["slots"], told["idle_slots"]) == ({(): 4}, {(): 3})
    assert told["reports"] == {(): 2}
    assert told["losses"] == {}
    assert told["write_lag_seconds"] == {(): 0.0}
    assert told["free_bytes"][()] > 0


def test_without_a_value_none_is_told(setting):
    told = setting.step()
    assert told["best_value"] == {}
    assert told["reports"] == {}


def test_nothing_is_told_twice_in_a_second(setting):
    setting.step()
    for _ in range(9):
        setting.step(UPDATE_SECONDS / 10)
    assert setting.instruments["cellseg_slots"].calls == 1
    setting.step(UPDATE_SECONDS)
    assert setting.instruments["cellseg_slots"].calls == 2


def test_telling_takes_a_hundredth_of_the_time_at_most(setting, monkeypatch):
    setting.step()
    tell = setting.metrics.tell

    def slow() -> None:
        tell()
        setting.now += 0.05

    monkeypatch.setattr(setting.metrics, "tell", slow)
    for _ in range(100):
        setting.step(UPDATE_SECONDS)
    assert setting.instruments["cellseg_slots"].calls == pytest.approx(1 + 100 / 5, abs=1)


def test_losses_are_added_by_the_name_of_their_machine(setting):
    setting.fleet.num_losses["a"] += 2
    setting.fleet.num_losses["b"] += 1
    setting.step()
    setting.fleet.num_losses["a"] += 1
    assert setting.step()["losses"] == {("host-a",): 3, ("host-b",): 1}
    assert setting.instruments["cellseg_losses"].calls == 3


def test_events_that_wait_to_be_written_are_a_lag(setting):
    store = setting.study.store
    with store.held():
        setting.study.propose()
        first = setting.step()["write_lag_seconds"][()]
        assert setting.step()["write_lag_seconds"][()] > first > 0
    assert setting.step()["write_lag_seconds"] == {(): 0.0}


def test_the_free_space_is_asked_for_rarely_and_may_be_unknown(setting, monkeypatch):
    asked = []

    def usage(folder: Path) -> Any:
        asked.append(folder)
        if len(asked) == 2:
            raise OSError("a mount that is gone")
        return SimpleNamespace(free=7.0, total=9)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    for _ in range(5):
        told = setting.step(SPACE_SECONDS / 5)
    assert told["free_bytes"] == {(): 7.0}
    assert len(asked) == 1
    setting.step(SPACE_SECONDS)
    assert len(asked) == 2
    assert set(asked) == {setting.study.store.folder}


def test_ray_gets_an_instrument_of_the_right_kind_for_each(monkeypatch):
    made = []
    for kind in ("Gauge", "Counter"):
        monkeypatch.setattr(metrics.metrics, kind, lambda *given, kind=kind: made.append((kind, *given)))
    for metric in METRICS:
        metrics._ray_metric(metric)
    assert {name: kind for kind, name, *_ in made} == {metric.name: metric.kind.title() for metric in METRICS}
    assert all(tags == ("study",) or (len(tags) == 2 and tags[0] == "study") for *_, tags in made)


def test_a_search_tells_metrics_and_progress_while_it_runs_and_at_its_end(tmp_path, monkeypatch):
    """Tune is a stand-in that starts a trial and comes to a rest once."""
    study = make_study(tmp_path, "cells", trials=9)
    instruments, progress, waited = {}, [], []
    running: list[float] = []

    class FakeTuner:
        def __init__(self, trainable: Any, tune_config: Any, run_config: Any):
            self.callbacks = run_config.callbacks

        def fit(self) -> None:
            study.propose()
            for callback in self.callbacks:
                callback.on_step_end(1, [])
            running.append(instruments["cellseg_trials"].values["running",])
            waits[0]("waiting for 1 GPU")

    def fake_fleet(*_: Any, on_wait: Any, **__: Any) -> Any:
        waits.append(on_wait)
        return SimpleNamespace(slots=4, num_losses=Counter())

    def instrument(metric: Metric) -> Instrument:
        instruments[metric.name] = Instrument(metric)
        return instruments[metric.name]

    waits: list[Any] = []
    monkeypatch.setattr(driver, "Room", lambda *_, **__: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(driver, "Fleet", fake_fleet)
    monkeypatch.setattr(driver, "StudyMetrics", partial(StudyMetrics, make=instrument))
    monkeypatch.setattr(driver.tune, "Tuner", FakeTuner)
    monkeypatch.setattr(driver.tune, "with_parameters", lambda trainable, **_: trainable)
    monkeypatch.setattr(driver.tune, "with_resources", lambda trainable, _: type("Stand", (), {}))
    monkeypatch.setattr(driver.ray, "get_runtime_context", lambda: SimpleNamespace(get_job_id=lambda: "1"))
    monkeypatch.setattr(job_progress, "own_job", lambda: "a job")
    monkeypatch.setattr(job_progress, "tell_job", lambda *words: progress.append(words))
    assert not driver.run_study(study, empty_table(), {"cpu": 1, "gpu": 0}, on_wait=waited.append)
    assert running == [1]
    assert instruments["cellseg_trials"].values["running",] == 0
    assert instruments["cellseg_trials"].values["interrupted",] == 1
    assert waited == ["waiting for 1 GPU"]
    assert progress == [
        ("a job", "cells", str(tmp_path), "0 of 9 trials, 1 running"),
        ("a job", "cells", str(tmp_path), "0 of 9 trials, 0 running; waiting for 1 GPU"),
    ]


def test_a_search_that_nobody_submitted_tells_no_job(setting, monkeypatch):
    monkeypatch.setattr(job_progress, "tell_job", lambda *_: pytest.fail("there is none"))
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR", raising=False)
    assert own_job() is None
    JobProgress(setting.study).on_step_end(1, [])
    environment = {"runtime_env": {}, "metadata": {"job_submission_id": "cells-1", "job_name": "cells"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(environment))
    assert own_job() == "cells-1"


def test_the_progress_is_a_line(setting):
    study = setting.study
    assert describe_progress(study) == "0 of 9 trials, 0 running"
    assert describe_progress(study, "waiting for 1 GPU") == "0 of 9 trials, 0 running; waiting for 1 GPU"
    study.propose()
    study.report(0, make_report(1, 0.25), "n")
    assert describe_progress(study) == "0 of 9 trials, 1 running, best segm/AP50 0.2500 (t0000)"


# The files of deploy/metrics


def asked_for(text: str) -> set[str]:
    return set(re.findall(r"ray_cellseg_\w+", text))


def dashboard() -> dict[str, Any]:
    return json.loads((DEPLOY / "cellseg_grafana_dashboard.json").read_text())


def test_the_dashboard_the_alerts_and_the_page_ask_for_what_is_exported_and_for_all_of_it():
    exported = {metric.exported for metric in METRICS}
    queries = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    assert asked_for(" ".join(queries)) == exported
    rules = [
        rule for group in yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
    ]
    assert len(rules) >= 4
    for rule in rules:
        assert asked_for(rule["expr"]) and asked_for(rule["expr"]) <= exported
    assert asked_for((DEPLOY / "README.md").read_text()) - {"ray_cellseg"} == exported


def test_the_queries_use_tags_that_their_metrics_have():
    tags = {metric.exported: {"study", metric.tag} for metric in METRICS}
    for panel in dashboard()["panels"]:
        for target in panel["targets"]:
            known = {"study"}.union(*(tags[name] for name in asked_for(target["expr"])))
            used = set(re.findall(r"(\w+)=~?\"", target["expr"])) | set(
                re.findall(r"{{(\w+)}}", target["legendFormat"])
            )
            grouped = {name for group in re.findall(r"by \(([^)]*)\)", target["expr"]) for name in group.split(", ")}
            assert used | grouped <= known, target["expr"]


def test_the_dashboard_is_one_that_grafana_provisions():
    """As Ray's own: an id that is not theirs, panels on a grid of 24 without overlaps, the data source a variable."""
    content = dashboard()
    assert content["uid"] and content["title"] and "id" not in content and "__inputs" not in content
    panels = content["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["type"] in {"timeseries", "stat", "gauge"} and panel["title"]
        for each in (panel, *panel["targets"]):
            assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    assert [variable["name"] for variable in content["templating"]["list"]] == ["datasource", "study"]


def test_prometheus_reads_the_list_that_ray_keeps():
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    content = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    (job,) = content["scrape_configs"]
    assert job["file_sd_configs"] == [{"files": [f"/tmp/ray/{PROMETHEUS_SERVICE_DISCOVERY_FILE}"]}]
    assert content["rule_files"] == ["alerts.yaml"]
