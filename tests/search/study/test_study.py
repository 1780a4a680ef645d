"""What a study proposes, decides and writes; without Ray and without training."""

import json
from collections import Counter

import pytest
from fakes import METRIC, finish, make_report, make_space, make_study, study_of, told

from cellseg.config import TrialConfig
from cellseg.errors import UserError
from search.ablation import parse_ablation
from search.storage.store import StudyStore
from search.study.failures import ANY_FAILURES_IN_A_ROW
from search.study.study import OUTCOMES, trial_seed


@pytest.fixture
def study(tmp_path):
    return make_study(tmp_path)


def train(study, number: int, values, ending: str | None = "epochs") -> list[bool]:
    """Report ``values`` from epoch 1 and end the trial, unless ASHA ended it; what the study answered."""
    answers = []
    for epoch, value in enumerate(values, start=1):
        last = told(ending) if epoch == len(values) else None
        answers.append(study.report(number, make_report(epoch, value, ending=last)))
    if ending is not None:
        finish(study, number, ending)
    return answers


def keep_checkpoints(study, number: int) -> None:
    for name in ("best", "last"):
        folder = study.store.checkpoint_folder(number) / name
        folder.mkdir(parents=True)
        (folder / "checkpoint.json").write_text("{}")


def kept(study) -> set[str]:
    root = study.store.folder / "checkpoints"
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_dir()} if root.is_dir() else set()


def reopened(study, **settings):
    """The study as the next command finds it."""
    return make_study(study.store.folder.parent, study.name, **settings)


def assert_same_rungs_and_record(live_study, again) -> None:
    """Whether ASHA and the sampler of two studies know the same trials."""
    for epoch in live_study.asha.rungs:
        live, replayed = live_study.asha.rung(epoch), again.asha.rung(epoch)
        assert {n: arrival.value for n, arrival in live.items()} == {
            n: arrival.value for n, arrival in replayed.items()
        }
    for live, replayed in zip(live_study.sampler.study.trials, again.sampler.study.trials, strict=True):
        for name in ("state", "value", "params", "intermediate_values", "user_attrs", "constraints"):
            assert getattr(live, name) == getattr(replayed, name), (live.number, name)


def test_proposals_have_numbers_seeds_and_configs_of_their_own(study):
    proposals = [study.propose() for _ in range(6)]
    assert [proposal.number for proposal in proposals] == list(range(6))
    assert len({proposal.config["train.seed"] for proposal in proposals}) == 6
    assert len({proposal.config["optim.lr"] for proposal in proposals}) == 6
    for proposal in proposals:
        config = TrialConfig.from_flat(proposal.config)
        assert (config.train.epochs, config.train.metric, config.model.weights) == (4, METRIC, "none")
        assert proposal.folder.is_absolute()
        assert proposal.folder == study.store.checkpoint_folder(proposal.number).resolve()


def test_a_proposal_is_in_the_tables_before_it_runs(study):
    proposal = study.propose()
    (row,) = StudyStore.open(study.store.folder).trials()
    assert (row.number, row.state, row.started is not None) == (0, "RUNNING", True)
    assert json.loads(row.config) == proposal.config
    assert json.loads(row.params).keys() == {"optim.lr", "train.batch_size"}


def test_fixed_settings_of_the_command_stand_in_every_config(tmp_path):
    study = make_study(tmp_path)
    study._fixed = {"data.root": "/somewhere"}
    assert study.propose().config["data.root"] == "/somewhere"


@pytest.mark.parametrize("seed", [0, 1, 50_000, 2**31])
def test_seeds_of_trials_differ_and_are_legal_for_any_study_seed(tmp_path, seed):
    seeds = [trial_seed(seed, number) for number in range(2000)]
    assert len(set(seeds)) == 2000
    assert make_study(tmp_path, seed=seed).propose().config["train.seed"] == seeds[0]


def test_running_trials_fill_the_target_and_a_failure_makes_room(study):
    assert all(study.propose() for _ in range(6))
    assert study.propose() is None
    study.end(3, "bug", "KeyError: 'x'")
    assert study.propose().number == 6
    assert study.propose() is None
    assert not study.is_over


def test_the_target_counts_every_trial_that_did_not_fail(tmp_path):
    study = make_study(tmp_path, trials=3)
    endings = ["epochs", "non-finite", "pruned", "out-of-memory"]
    for ending in endings:
        number = study.propose().number
        train(study, number, [0.0 if ending == "pruned" else 0.1 + number], ending)
    assert (study.num_finished, study.is_over) == (3, True)
    assert study.propose() is None
    assert [row.state for row in study.rows] == ["COMPLETE", "FAILED", "PRUNED", "INFEASIBLE"]


def test_an_epoch_is_written_and_asha_decides(study):
    first, second = study.propose().number, study.propose().number
    assert study.report(first, make_report(1, 0.5))
    assert not study.report(second, make_report(1, 0.1)), "one of two, and behind"
    assert study.report(first, make_report(2, 0.6))
    again = StudyStore.open(study.store.folder)
    row = again.trials()[0]
    assert (row.metric, row.best_epoch, row.epochs, row.seconds) == (0.6, 2, 2, 1.0)
    assert [(epoch.epoch, epoch.metrics[METRIC]) for epoch in again.epochs(0)] == [(1, 0.5), (2, 0.6)]


def test_a_trial_that_asha_stops_is_ended_with_rank_and_what_it_needed(study):
    for value in (0.5, 0.4, 0.0074):
        study.report(study.propose().number, make_report(1, value))
    first, second, third = StudyStore.open(study.store.folder).trials()
    assert (first.state, second.state, third.state) == ("RUNNING", "PRUNED", "PRUNED")
    assert second.reason == "pruned: rank 2 of 2 at epoch 1, needed 0.5000, had 0.4000"
    assert third.reason == "pruned: rank 3 of 3 at epoch 1, needed 0.5000, had 0.0074"
    assert (third.ending, third.detail) == ("pruned", "rank 3 of 3 at epoch 1, needed 0.5000, had 0.0074")
    assert third.ended is not None
    number = study.propose().number
    study.report(number, make_report(1, 0.5))
    assert study.rows[number].reason == "", "two of four go on, and it is no worse than the best"
    number = study.propose().number
    study.report(number, make_report(1, 0.5))
    assert study.rows[number].reason == "pruned: rank 3 of 5 at epoch 1, tied at 0.5000"


def test_the_reason_of_a_pruned_loss_shows_losses_as_they_are(tmp_path):
    study = make_study(tmp_path, metric=LOSS, direction="minimize")
    for value in (0.5, 0.75):
        study.report(study.propose().number, make_report(1, value, metric=LOSS))
    assert study.rows[1].reason == "pruned: rank 2 of 2 at epoch 1, needed 0.5000, had 0.7500"


def test_a_trial_whose_training_is_over_is_not_pruned_by_its_last_report(study):
    first, second = study.propose().number, study.propose().number
    assert study.report(first, make_report(1, 0.5))
    assert not study.report(second, make_report(1, 0.1, ending="patience"))
    assert study.rows[second].state == "RUNNING", "the caller ends it"
    study.end(second, "patience")
    assert study.rows[second].state == "COMPLETE"


def test_without_asha_every_trial_goes_on(tmp_path):
    study = make_study(tmp_path, asha=False)
    for value in (0.5, 0.4, 0.3, 0.2):
        number = study.propose().number
        assert all(train(study, number, [value] * 4, ending=None))
        study.end(number, "epochs")


def test_a_repeated_epoch_is_not_counted_twice(study):
    number = study.propose().number
    train(study, number, [0.5, 0.6], ending=None)
    report = make_report(2, 0.6) | dict.fromkeys(("learning_rate", "images_per_second", "peak_memory_bytes"))
    assert study.report(number, report | {"losses": {}, "seconds": 0.0})
    assert study.rows[0].seconds == 1.0
    assert study.store.epochs(number)[1].losses == {"loss": 0.5}, "what was known stays"


@pytest.mark.parametrize(
    ("ending", "detail", "state", "reason"),
    [
        ("epochs", "", "COMPLETE", "epochs"),
        ("patience", "", "COMPLETE", "patience"),
        ("pruned", "at epoch 1", "PRUNED", "pruned: at epoch 1"),
        ("out-of-memory", "80 GiB", "INFEASIBLE", "out-of-memory: 80 GiB"),
        ("non-finite", "loss_mask in epoch 1", "FAILED", "non-finite: loss_mask in epoch 1"),
        ("invalid", "too large", "FAILED", "invalid: too large"),
        ("bug", "Traceback\nKeyError: 'x'", "FAILED", "bug: Traceback\nKeyError: 'x'"),
        ("lost", "its process died 3 times", "FAILED", "lost: its process died 3 times"),
    ],
)
def test_an_end_has_a_state_a_reason_and_a_time(study, ending, detail, state, reason):
    number = study.propose().number
    study.report(number, make_report(1, 0.5))
    study.end(number, ending, detail)
    (row,) = StudyStore.open(study.store.folder).trials()
    assert (row.state, row.reason, row.ended is not None, row.metric) == (state, reason, True, 0.5)


def test_every_ending_is_covered_above():
    assert len(OUTCOMES) == 8


def test_an_unknown_ending_is_a_bug_of_the_caller(study):
    number = study.propose().number
    with pytest.raises(KeyError):
        study.end(number, "tired")


def test_the_leaderboard_ranks_by_value_then_by_number(study):
    for value in (0.2, 0.7, 0.7, 0.9):
        train(study, study.propose().number, [value])
    study.propose()
    assert [row.number for row in study.leaderboard] == [3, 1, 2, 0]


def test_only_the_best_checkpoints_and_unfinished_trials_stay_on_disk(study):
    for number, value in enumerate((0.1, 0.5, 0.3, 0.4)):
        assert study.propose().number == number
        keep_checkpoints(study, number)
        study.report(number, make_report(1, value))
    for number in (0, 1, 2):
        finish(study, number, "pruned")
    assert kept(study) == {"t0001", "t0001/best", "t0002", "t0002/best", "t0003", "t0003/best", "t0003/last"}
    study.end(3, "epochs")
    assert kept(study) == {"t0001", "t0001/best", "t0003", "t0003/best"}


def test_a_running_trial_keeps_its_state_however_bad_it_is(study):
    for number, value in enumerate((0.0, 0.5, 0.6, 0.7)):
        study.propose()
        keep_checkpoints(study, number)
        study.report(number, make_report(1, value))
    for number in (1, 2, 3):
        study.end(number, "epochs")
    assert {"t0000/best", "t0000/last"} <= kept(study)
    study.interrupt()
    study = reopened(study, trials=8)
    study.propose()
    study.end(study.propose().number, "non-finite", "loss")
    assert {"t0000/best", "t0000/last"} <= kept(study)


def fail(study, details, ending="bug") -> None:
    for detail in details:
        study.end(study.propose().number, ending, detail)


def test_three_failures_in_a_row_with_one_cause_end_the_search(study):
    fail(study, ["Traceback 1\nKeyError: 'x'", "Traceback 2\nKeyError: 'x'"])
    assert not study.is_over
    fail(study, ["KeyError: 'x'"])
    assert study.is_over
    assert study.abort_reason == "3 trials in a row ended as 'bug': KeyError: 'x'"
    assert study.propose() is None


def test_failures_with_other_causes_or_with_a_success_between_do_not(study):
    fail(study, ["a", "b", "a", "c", "c"])
    train(study, study.propose().number, [0.5])
    fail(study, ["c", "c"])
    study.end(study.propose().number, "out-of-memory")
    fail(study, ["c", "c"])
    assert study.abort_reason is None


def test_exploding_losses_are_no_common_cause_but_do_not_go_on_for_ever(study):
    fail(study, ["loss_mask in epoch 1"] * (ANY_FAILURES_IN_A_ROW - 1), ending="non-finite")
    assert study.abort_reason is None
    fail(study, ["loss_mask in epoch 1"], ending="non-finite")
    assert "10 trials in a row failed, the last as 'non-finite'" in study.abort_reason


def test_failures_that_all_differ_do_not_go_on_for_ever(study):
    fail(study, [f"KeyError: '{letter}'" for letter in "abcdefghij"])
    assert ANY_FAILURES_IN_A_ROW == 10
    assert "10 trials in a row failed, the last as 'bug': KeyError: 'j'" in study.abort_reason


def test_a_study_that_gave_up_tries_again_when_it_is_continued(study):
    fail(study, ["KeyError: 'x'"] * 3)
    again = reopened(study)
    assert not again.is_over
    assert again.propose().number == 3


def test_interrupted_trials_come_first_under_their_numbers_with_their_configs(study):
    before = [study.propose() for _ in range(3)]
    study.report(2, make_report(1, 0.5))
    study.end(1, "pruned")
    assert study.interrupt() == [0, 2]
    assert [row.state for row in StudyStore.open(study.store.folder).trials()] == [
        "INTERRUPTED",
        "PRUNED",
        "INTERRUPTED",
    ]
    again = reopened(study)
    assert [again.propose() for _ in range(2)] == [before[0], before[2]]
    assert again.rows[2].metric == 0.5
    assert again.propose().number == 3
    assert [row.state for row in again.rows] == ["RUNNING", "PRUNED", "RUNNING", "RUNNING"]


def test_trials_of_a_killed_search_are_continued_and_not_called_running_before(study):
    before = study.propose(), study.propose()
    again = reopened(study)  # nobody said goodbye
    rows = StudyStore.open(study.store.folder).trials()
    assert {(row.state, row.reason) for row in rows} == {("INTERRUPTED", "the search was killed")}
    assert again.propose() == before[0]
    again.interrupt()
    assert {row.state for row in StudyStore.open(study.store.folder).trials()} == {"INTERRUPTED"}


def test_a_continued_trial_goes_on_counting(study):
    number = study.propose().number
    train(study, number, [0.3, 0.5], ending=None)
    study.interrupt()
    again = reopened(study)
    assert again.propose().number == number
    train_rest = [again.report(number, make_report(epoch, 0.6)) for epoch in (3, 4)]
    again.end(number, "epochs")
    assert all(train_rest)
    assert [row.epoch for row in again.store.epochs(number)] == [1, 2, 3, 4]
    assert (again.rows[0].state, again.rows[0].seconds, again.rows[0].metric) == ("COMPLETE", 2.0, 0.6)


def test_replay_leaves_sampler_and_asha_as_they_were(study):
    for values, ending in [
        ([0.1, 0.2, 0.3, 0.4], "epochs"),
        ([0.05], "pruned"),
        ([0.3, 0.3], "non-finite"),
        ([0.2], "out-of-memory"),
        ([0.4, 0.5, 0.6], "patience"),
    ]:
        train(study, study.propose().number, values, ending)
    again = reopened(study)
    assert_same_rungs_and_record(study, again)
    assert again.propose() == study.propose(), "and the next proposal is the same"


LOSS = "loss/validation"


@pytest.fixture
def minimizing(tmp_path):
    return make_study(tmp_path, metric=LOSS, direction="minimize")


def losses_of(study, number: int, values, ending: str | None = "epochs") -> list[bool]:
    """As :func:`train`, of a trial whose best loss so far is reported, and beside it that of the epoch."""
    answers = []
    for epoch, value in enumerate(values, start=1):
        last = told(ending) if epoch == len(values) else None
        report = make_report(epoch, value, metric=LOSS, ending=last) | {"best_value": min(values[:epoch])}
        answers.append(study.report(number, report))
    if ending is not None:
        finish(study, number, ending)
    return answers


def test_of_a_minimised_metric_the_lower_trial_goes_on_and_leads(minimizing):
    study = minimizing
    for _ in range(3):
        study.propose()
    assert losses_of(study, 0, [0.5], ending=None) == [True]
    assert losses_of(study, 1, [0.9], ending="pruned") == [False]
    assert losses_of(study, 2, [0.1], ending=None) == [True]
    assert [row.number for row in study.leaderboard] == [2, 0, 1]
    assert [row.metric for row in study.leaderboard] == [0.1, 0.5, 0.9], "natural values"
    assert [arrival.value for arrival in study.asha.rung(1).values()] == [-0.5, -0.9, -0.1]
    assert study.sampler.study.direction.name == "MINIMIZE"
    assert study.sampler.study.trials[1].intermediate_values == {1: 0.9}


def test_of_a_minimised_metric_the_lowest_checkpoints_stay(tmp_path):
    study = make_study(tmp_path, metric=LOSS, direction="minimize", asha=False)
    for number, value in enumerate((0.9, 0.2, 0.5)):
        study.propose()
        keep_checkpoints(study, number)
        losses_of(study, number, [value])
    assert kept(study) == {"t0001", "t0001/best", "t0002", "t0002/best"}


def test_replay_of_a_minimised_metric_knows_the_best_value_so_far(minimizing):
    study = minimizing
    for values, ending in [([0.5, 0.3, 0.4, 0.2], "epochs"), ([0.9], "pruned"), ([0.1, 0.6, 0.7], "patience")]:
        losses_of(study, study.propose().number, values, ending)
    assert_same_rungs_and_record(study, reopened(study, metric=LOSS, direction="minimize"))


def test_a_table_that_ranks_by_another_metric_is_a_bug_of_the_caller(study):
    with pytest.raises(AssertionError):
        space = make_space(metric=LOSS, direction="minimize")
        study_of("study", space, study.store)


@pytest.mark.parametrize(
    ("first", "second", "goes_on"),
    [
        (2.0, 1.0, True),
        (1.0, 2.0, False),
        (1.0, 1.0, False),
        (float("nan"), 5.0, True),  # a loss that is not finite is worse than any
        (5.0, float("inf"), False),
        (None, None, False),
    ],
)
def test_of_equal_values_the_lower_validation_loss_of_that_epoch_goes_on(study, first, second, goes_on):
    answers = []
    for loss in (first, second):
        metrics = {} if loss is None else {LOSS: loss}
        answers.append(study.report(study.propose().number, make_report(1, 0.0, **metrics)))
    assert answers == [True, goes_on]


def test_replay_knows_the_tie_breakers(study):
    for number, losses in enumerate([(2.0, 1.0, 0.7), (1.5, 2.5, float("nan")), (1.0,)]):
        study.propose()
        for epoch, loss in enumerate(losses, start=1):
            last = "patience" if epoch == len(losses) > 1 else None
            study.report(number, make_report(epoch, 0.0, ending=last, **{LOSS: loss}))
        finish(study, number, "patience" if len(losses) > 1 else "pruned")
    again = reopened(study)
    for epoch in study.asha.rungs:
        live, replayed = study.asha.rung(epoch), again.asha.rung(epoch)
        assert {number: arrival.tie_breaker for number, arrival in live.items()} == {
            number: arrival.tie_breaker for number, arrival in replayed.items()
        }
    assert [arrival.tie_breaker for arrival in again.asha.rung(1).values()] == [2.0, 1.5, 1.0]
    numbers = [again.propose().number, study.propose().number]
    assert [s.report(n, make_report(1, 0.0, **{LOSS: 0.5})) for s, n in zip((again, study), numbers, strict=True)] == [
        True,
        True,
    ]


def test_a_larger_target_continues_a_finished_study(tmp_path):
    study = make_study(tmp_path, trials=2)
    for value in (0.1, 0.2):
        train(study, study.propose().number, [value])
    assert reopened(study, trials=2).propose() is None
    again = reopened(study, trials=4)
    assert [again.propose().number, again.propose().number] == [2, 3]
    assert again.propose() is None


def test_starts_of_the_space_are_proposed_first_and_once(tmp_path):
    starts = [{"optim.lr": 2e-3, "train.batch_size": 4}]
    study = make_study(tmp_path, start_from=starts)
    assert study.propose().config["optim.lr"] == 2e-3
    study.interrupt()
    again = reopened(study, start_from=starts)
    rates = Counter(again.propose().config["optim.lr"] for _ in range(3))
    assert rates[2e-3] == 1


def test_values_that_break_a_rule_together_fail_and_the_next_ones_are_proposed(study, monkeypatch):
    config = type(study.experiment).config
    attempts = []

    def first_is_refused(space, params, *, seed):
        attempts.append(params)
        if len(attempts) == 1:
            raise UserError("model.norm: coco weights need batch statistics, but got norm=group.")
        return config(space, params, seed=seed)

    monkeypatch.setattr(type(study.experiment), "config", first_is_refused)
    assert study.propose().number == 1
    refused = study.rows[0]
    assert (refused.state, refused.metric) == ("FAILED", None)
    assert refused.reason == "invalid: model.norm: coco weights need batch statistics, but got norm=group."
    assert json.loads(refused.params) == attempts[0]
    assert reopened(study).rows[0].state == "FAILED"


@pytest.mark.parametrize("ending", ["pruned", "out-of-memory", "patience"])
def test_only_failures_in_a_row_end_the_search(tmp_path, ending):
    study = make_study(tmp_path, trials=40)
    for _ in range(ANY_FAILURES_IN_A_ROW + 2):
        fail(study, ["KeyError: 'x'", "KeyError: 'x'"])
        study.end(study.propose().number, ending)
    for _ in range(ANY_FAILURES_IN_A_ROW + 2):
        study.end(study.propose().number, ending)
    assert study.abort_reason is None


def test_peak_memory_is_the_highest_of_all_epochs(study):
    number = study.propose().number
    for epoch, peak in enumerate((5, 9, None, 3), start=1):
        study.report(number, make_report(epoch, 0.5) | {"peak_memory_bytes": peak})
    assert StudyStore.open(study.store.folder).trial(number).peak_memory_bytes == 9


def test_a_continued_trial_still_knows_how_long_its_earlier_epochs_took(study):
    number = study.propose().number
    for epoch, seconds in enumerate((90.0, 1.0, 2.0), start=1):
        study.report(number, make_report(epoch, 0.5) | {"seconds": seconds})
    study.interrupt()
    again = reopened(study)
    assert again.propose().number == number
    again.report(number, make_report(4, 0.5) | {"seconds": 9.0})
    row = again.store.trial(number)
    assert row.seconds_per_epoch == 2.0, "the median of 1, 2 and 9 s; the first epoch does not count"
    assert row.seconds == 102.0


def test_the_seed_of_a_trial_is_the_same_in_every_release():
    assert [trial_seed(2, 3), trial_seed(0, 0), trial_seed(2**31, 1)] == [200_009, 0, 2_147_483_649]


def test_a_report_leaves_the_size_of_the_model_in_the_table(study):
    number = study.propose().number
    study.report(number, make_report(1, 0.5) | {"parameters": 4321})
    assert study.store.trial(number).parameters == 4321
    study.report(number, make_report(2, 0.6) | {"parameters": None})  # as a continued trial's first report
    assert study.store.trial(number).parameters == 4321


def test_an_interrupted_trial_says_why(study):
    number = study.propose().number
    study.interrupt()
    assert study.store.trial(number).reason == "the search was stopped"


def test_equal_repeats_of_an_ablation_share_their_seed(tmp_path):
    rows = {"small": {"config": {"optim.lr": 1e-4}}, "large": {"config": {"optim.lr": 1e-2}}}
    content = {
        "title": "rates",
        "source": "none",
        "metric": METRIC,
        "direction": "maximize",
        "repeats": 2,
        "measured": [METRIC],
        "common": {"model.weights": "none", "train.epochs": 3},
        "rows": rows,
    }
    ablation = parse_ablation(content, "rates.yaml")
    store = StudyStore.create(tmp_path / "rates", {"name": "rates", "metric": METRIC, "objective": None})
    study = study_of("rates", ablation, store)
    seeds = {}
    for _ in range(4):
        row = study.store.trial(study.propose().number)
        run = json.loads(row.params)
        seeds[run["row"], run["repeat"]] = row.seed
    assert seeds["small", 0] == seeds["large", 0] != seeds["small", 1] == seeds["large", 1]


def test_only_ended_trials_compete_for_the_kept_checkpoints(tmp_path):
    """With an objective, the leader may be a trial whose next epochs are slow: what is deleted for it is gone."""
    study = make_study(tmp_path, keep=1, asha=False, objective={"per": "seconds", "doubling": 1.0})
    for number, (value, seconds) in enumerate([(0.5, 1.0), (0.4, 1.0), (0.6, 1.0)]):
        study.propose()
        keep_checkpoints(study, number)
        study.report(number, make_report(1, value) | {"seconds": seconds})
    assert study.leaderboard[0].number == 2
    study.end(0, "epochs")
    study.end(1, "epochs")
    assert "t0000/best" in kept(study)
    for epoch in (2, 3):
        study.report(2, make_report(epoch, 0.6) | {"seconds": 9.0})
    study.end(2, "epochs")
    assert study.leaderboard[0].number == 0
    assert kept(study) == {"t0000", "t0000/best"}


def test_the_end_of_a_trial_is_on_disk_before_its_checkpoints_are_deleted(study, monkeypatch):
    """A search that is killed in between must find the trial ended, or its checkpoints: never neither."""
    from search.storage.checkpoints import Checkpoints

    seen = []
    keep = Checkpoints.keep

    def watch(checkpoints, best, rows):
        seen.append([row.state for row in StudyStore.open(study.store.folder).trials()])
        keep(checkpoints, best, rows)

    monkeypatch.setattr(Checkpoints, "keep", watch)
    with study.store.buffered(1000):
        study.propose()
        keep_checkpoints(study, 0)
        study.report(0, make_report(1, 0.5))
        study.store.flush()
        study.end(0, "epochs")
        assert [row.state for row in StudyStore.open(study.store.folder).trials()] == ["RUNNING"]
        assert {"t0000/best", "t0000/last"} <= kept(study)
    assert seen == [["COMPLETE"]]
    assert kept(study) == {"t0000", "t0000/best"}


def test_a_new_trial_does_not_go_on_from_checkpoints_of_one_that_was_never_written_down(study):
    """A search may be killed before the tables know of the trial that it has begun."""
    left = study.store.checkpoint_folder(0) / "last"
    left.mkdir(parents=True)
    (left / "checkpoint.json").write_text("{}")
    proposal = study.propose()
    assert (proposal.number, proposal.epochs) == (0, 0)
    assert not left.exists()


def test_a_continued_trial_says_how_many_of_its_epochs_are_known(tmp_path):
    study = make_study(tmp_path)
    study.propose()
    study.report(0, make_report(1, 0.5))
    study.report(0, make_report(2, 0.6))
    assert make_study(tmp_path).propose().epochs == 2


def test_the_number_of_finished_trials_follows_every_change(tmp_path):
    study = make_study(tmp_path, asha=False)
    for number in range(3):
        study.propose()
        assert study.num_finished == number
        finish(study, number, "epochs" if number else "out-of-memory")
    study.propose()
    study.end(3, "bug")
    assert (study.num_finished, make_study(tmp_path, asha=False).num_finished) == (3, 3)
