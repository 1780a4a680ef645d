"""Properties of the tables and of what a study makes of them, on random rows and random searches."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from examples import property_test
from fakes import finish, make_report, make_study
from hypothesis import strategies as st
from pytest import MonkeyPatch

from search.sampling import proposer
from search.storage import store as store_module
from search.storage.store import StudyStore
from search.storage.tables import STATES, UNFINISHED, EpochRow, TrialRow, finite

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)  # UTF-8 has no lone surrogates
NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1e308, 5e-324, math.nan, math.inf]))
COUNTS = st.integers(0, 2**62)
FINITE = st.floats(0, 1e12)
TRIALS = st.builds(
    TrialRow,
    number=st.integers(0, 30),
    state=st.sampled_from(STATES),
    reason=TEXT,
    params=TEXT,
    config=TEXT.map(lambda text: json.dumps({"data.root": text})),
    seed=COUNTS,
    metric=st.one_of(st.none(), NUMBERS),
    best_epoch=st.one_of(st.none(), COUNTS),
    epochs=COUNTS,
    seconds=FINITE,
    started=st.one_of(st.none(), TEXT),
    ended=st.one_of(st.none(), TEXT),
    node=TEXT,
    peak_memory_bytes=st.one_of(st.none(), COUNTS),
    parameters=st.one_of(st.none(), COUNTS),
    seconds_per_epoch=st.one_of(st.none(), FINITE),
    gpu_seconds=st.one_of(st.none(), FINITE),
)
EPOCHS = st.builds(
    EpochRow,
    trial=st.integers(0, 5),
    epoch=st.integers(1, 12),
    metrics=st.dictionaries(TEXT, st.one_of(st.none(), NUMBERS), max_size=3),
    losses=st.dictionaries(TEXT, NUMBERS, max_size=3),
    seconds=FINITE,
    images_per_second=st.one_of(st.none(), FINITE),
    peak_memory_bytes=st.one_of(st.none(), COUNTS),
    learning_rate=st.one_of(st.none(), FINITE),
)


@contextmanager
def quick_folder() -> Iterator[tuple[Path, MonkeyPatch]]:
    """A folder for an example, whose files need not outlive a loss of power."""
    with TemporaryDirectory() as folder, MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield Path(folder), patch


@property_test(few=20, many=500, rows=st.lists(st.one_of(TRIALS, EPOCHS), max_size=25), part_rows=st.integers(1, 9))
def test_rows_come_back_as_they_were_put_whatever_is_put_in_which_order(rows, part_rows):
    """Of rows with the same key the last one stays; values that are not finite come back as None."""
    with quick_folder() as (folder, patch):
        patch.setattr(store_module, "PART_ROWS", part_rows)
        store = StudyStore.create(folder / "s", {"metric": "m"})
        trials: dict[int, dict] = {}
        epochs: dict[tuple[int, int], dict] = {}
        for row in rows:
            content = {name: getattr(row, name) for name in row.__slots__}
            if isinstance(row, TrialRow):
                store.put_trial(row)
                trials[row.number] = content | {"metric": finite(row.metric)}
            else:
                store.add_epoch(row)
                for name in ("metrics", "losses"):
                    content[name] = {key: finite(value) for key, value in content[name].items()}
                epochs[row.trial, row.epoch] = content
        for read in (store, StudyStore.open(store.folder)):
            assert read.trials() == [TrialRow(**trials[number]) for number in sorted(trials)]
            assert read.epochs() == [EpochRow(**epochs[place]) for place in sorted(epochs)]
            for trial in {row.trial for row in read.epochs()}:
                assert read.epochs(trial) == [row for row in read.epochs() if row.trial == trial]


ACTS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(0, 20)), max_size=40)


@property_test(few=10, many=300, acts=ACTS)
def test_a_study_that_is_opened_again_knows_what_it_knew(acts):
    """Whatever happened: trials that report, end by themselves, fail, are put back or wait; and after an interruption
    the same once more."""
    with quick_folder() as (folder, patch):
        patch.setattr(proposer, "NUM_RANDOM", 10**9)  # what is proposed is another question
        study = make_study(folder, trials=8, asha={"grace": 1, "reduction": 2})
        running: dict[int, int] = {}
        best: dict[int, float] = {}
        for kind, which, value in acts:
            if kind < 4 and (len(running) < 3 and (proposal := study.propose()) is not None):
                running[proposal.number] = study.store.trial(proposal.number).epochs
                continue
            if not running:
                continue
            number = sorted(running)[which % len(running)]
            if kind == 8:
                study.put_back(number, "its machine is gone")
                del running[number]
            elif kind == 9 and which == 0:
                finish(study, number, "non-finite", "loss in epoch 1")
                del running[number]
            else:
                running[number] += 1
                ending = "epochs" if running[number] == 4 else "patience" if value == 7 else None
                best[number] = max(best.get(number, 0.0), value / 20)
                report = make_report(running[number], best[number], ending=ending, **{"loss/validation": value % 3})
                if not study.report(number, report):
                    if ending is not None:
                        finish(study, number, ending)
                    del running[number]
        ended = {row.number: row for row in study.rows if row.state not in UNFINISHED}
        study.interrupt()
        again = make_study(folder, trials=8, asha={"grace": 1, "reduction": 2})
        assert again.rows == study.rows
        assert {row.number: row for row in again.rows if row.state not in UNFINISHED} == ended
        assert again.num_finished == study.num_finished
        assert again.leaderboard == study.leaderboard
        for rung in study.asha.rungs:
            assert dict(again.asha.rung(rung)) == dict(study.asha.rung(rung))
        waiting = {row.number for row in again.rows if row.state in UNFINISHED}
        wanted = min(len(waiting), 8 - again.num_finished)
        assert {again.propose().number for _ in range(wanted)} <= waiting, "what was begun comes first"
