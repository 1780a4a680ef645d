"""Studies with made rows: as many trials as a test needs, of any space, without training."""

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from search.space import Range, Space
from search.space.space import Params
from search.storage.progress import FOLDER
from search.storage.store import StudyStore
from search.storage.tables import EpochRow, TrialRow
from search.study.asha import Asha
from search.study.choose import make_asha

BEGAN = datetime(2026, 3, 1, 8, tzinfo=UTC)
FAILURES = (
    ("non-finite", "loss_mask in epoch 2"),
    ("bug", "Traceback (most recent call last):\n  File \"/a/fit.py\", line 3, in f\n    f()\nKeyError: 'cells'"),
    ("lost", "its process died 3 times: the machine was switched off"),
)


def make_tables(
    folder: Path, space: Space, trials: int, *, running: int = 0, seed: int = 0, record: dict | None = None
) -> StudyStore:
    """Create a study whose trials have ended, but the last ``running``; ASHA decides as in a search.

    The metric saturates with the epochs, at a height that depends on a few parameters and on chance. One trial in 20
    fails, one in 25 does not fit into memory.

    Args:
        record: more of ``study.json``.
    """
    rng, asha = np.random.default_rng(seed), make_asha(space)
    study = {
        "name": folder.name,
        "created": BEGAN.isoformat(),
        "metric": space.metric,
        "objective": space.objective.model_dump() if space.objective else None,
        "seed": space.seed,
        "space": space.to_json(),
        "data_root": "/data/cells",
        "class_names": ["round", "long"],
        "versions": {"cellseg-search": "0.1.0", "torch": "2.8.0"},
        "hardware": {"machine": "x86_64", "system": "Linux", "cpus": 8, "gpus": ["NVIDIA L4"]},
    }
    store = StudyStore.create(folder, study | (record or {}), buffer_seconds=math.inf)
    for number in range(trials):
        is_open = number >= trials - running
        params = space.sample(rng, space.start_from[number] if number < len(space.start_from) else {})
        _add_trial(store, space, asha, number, params, rng, is_open)
    store.flush()
    return store


def _add_trial(
    store: StudyStore, space: Space, asha: Asha, number: int, params: Params, rng: np.random.Generator, is_open: bool
) -> None:
    began = BEGAN + timedelta(minutes=7 * number)
    row = {
        "number": number,
        "params": json.dumps(params),
        "config": json.dumps(dict(params) | {"train.epochs": space.epochs}),
        "seed": number,
        "started": began.isoformat(),
    }
    height = _height(space, params) + rng.normal(0, 0.03)
    fate = rng.random()
    if not is_open and fate < 0.04:
        detail = "images of 2000x1500 px with 900 cells do not fit, even one at a time"
        ended = (began + timedelta(seconds=30)).isoformat()
        store.put_trial(TrialRow(**row, state="INFEASIBLE", reason=f"out-of-memory: {detail}", ended=ended))
        return
    seconds, state, reason = 0.0, "COMPLETE", "epochs"
    speed, best, best_epoch, epoch = rng.uniform(8, 40), 0.0, None, 0
    last = int(rng.integers(1, max(2, space.epochs // 3))) if is_open else space.epochs
    for epoch in range(1, last + 1):
        if not is_open and fate > 0.95 and epoch == 2:
            ending, detail = FAILURES[number % len(FAILURES)]
            state, reason, epoch = "FAILED", f"{ending}: {detail}", 1
            break
        value = max(0.0, height * (1 - math.exp(-3 * epoch / space.epochs)) + rng.normal(0, 0.01))
        if best_epoch is None or value > best:
            best, best_epoch = value, epoch
        seconds += speed
        store.add_epoch(
            EpochRow(
                trial=number,
                epoch=epoch,
                metrics={space.metric: value, "segm/AP": value * 0.6, "loss/validation": 2 - value},
                losses={"loss": 2.0 * math.exp(-epoch / 5)},
                seconds=speed,
                images_per_second=600 / speed,
                peak_memory_bytes=3 * 2**30,
                learning_rate=1e-3,
            )
        )
        decision = asha.report(number, epoch, best, 2 - value)
        if not decision.goes_on and not is_open:
            state = "PRUNED"
            reason = (
                f"pruned: rank {decision.rank} of {decision.num_seen} at epoch {epoch}, "
                f"needed {decision.needed:.4f}, had {best:.4f}"
            )
            break
    store.put_trial(
        TrialRow(
            **row,
            state="RUNNING" if is_open else state,
            reason="" if is_open else reason,
            metric=best if best_epoch else None,
            best_epoch=best_epoch,
            epochs=epoch,
            seconds=seconds,
            ended=None if is_open else (began + timedelta(seconds=seconds)).isoformat(),
            node=f"node{number % 3}",
            peak_memory_bytes=int(rng.uniform(2, 12) * 2**30),
            parameters=int(rng.uniform(20, 90) * 1e6),
            seconds_per_epoch=speed,
            gpu_seconds=seconds,
        )
    )


def _height(space: Space, params: Params) -> float:
    """The metric of a fully trained trial, without chance: a hill over the first few keys."""
    height = 0.75
    for weight, (key, domain) in zip((0.25, 0.15, 0.1, 0.05), space.domains.items(), strict=False):
        if key not in params:
            continue
        if isinstance(domain, Range):
            low, high, value = domain.low, domain.high, params[key]
            if domain.log:
                low, high, value = math.log(low), math.log(high), math.log(value)
            height -= weight * 4 * ((value - low) / (high - low) - 0.6) ** 2
        else:
            height -= weight * domain.choices.index(params[key]) / max(1, len(domain.choices))
    return height


def write_progress(store: StudyStore, number: int, **values: object) -> None:
    """Write what the process of a running trial would tell."""
    folder = store.folder / FOLDER
    folder.mkdir(exist_ok=True)
    (folder / f"t{number:04d}.json").write_text(json.dumps(values))
