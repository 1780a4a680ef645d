import numpy as np
import pytest

from search.sampling import proposer as proposer_module
from search.sampling.encoding import Cube
from search.sampling.proposer import NUM_BEST, NUM_RANDOM, STEPS, Proposer
from search.sampling.surrogate import expected_improvement
from search.space import Choices, Range
from search.space.settings import direction_of

EPOCHS = 9


def make(metric: str = "m", domains=None) -> Proposer:
    domains = domains or {
        "x": Range(low=0.0, high=1.0),
        "kind": Choices(choices=("good", "bad")),
        "y": Range(low=0.0, high=1.0, when={"kind": ("good",)}),
    }
    return Proposer(Cube(domains), direction=direction_of(metric), levels=(1, 3, EPOCHS), seed=0)


def score(params) -> float:
    return 1 - (params["x"] - 0.3) ** 2 - (params["kind"] == "bad") - (params.get("y", 0) - 0.8) ** 2


def run(proposer, count, sign=1.0, start=0, infeasible=lambda params: False):
    """Propose and finish so many trials; their params."""
    done = []
    for number in range(start, start + count):
        params = proposer.propose(np.random.default_rng([1, number]))
        proposer.begin(number, params)
        if infeasible(params):
            proposer.end(number, None, infeasible=True)
        else:
            for epoch in (1, 3, EPOCHS):
                proposer.observe(number, epoch, sign * (score(params) - 1 / epoch))
            proposer.end(number, sign * score(params), infeasible=False)
        done.append(params)
    return done


@pytest.mark.parametrize("metric", ["m", "loss/validation"])
def test_proposals_close_in_on_the_best_config(metric):
    done = run(make(metric=metric), 40, sign=-1.0 if metric == "loss/validation" else 1.0)
    late = [params for params in done[25:] if params["kind"] == "good"]
    assert len(late) >= 10
    assert max(map(score, done)) > 0.99
    assert np.median([abs(params["x"] - 0.3) for params in late]) < 0.15


def test_the_first_proposals_are_random_draws():
    proposer = make()
    rng = np.random.default_rng(5)
    assert proposer.propose(rng) == proposer._cube.sample(np.random.default_rng(5))
    assert NUM_RANDOM > 1


def test_parallel_proposals_differ():
    proposer = make()
    run(proposer, 12)
    side_by_side = []
    for number in range(12, 20):
        params = proposer.propose(np.random.default_rng(3))  # the same randomness for all
        proposer.begin(number, params)
        side_by_side.append(tuple(params.values()))
    assert len(set(side_by_side)) == len(side_by_side)


def test_a_region_that_does_not_fit_into_memory_is_left():
    done = run(make(), 40, infeasible=lambda params: params["x"] < 0.5)
    assert sum(params["x"] < 0.5 for params in done[20:]) <= 6


def test_a_small_space_is_searched_without_repeats():
    proposer = make(domains={"kind": Choices(choices=tuple("abcdefghijklmnop"))})
    seen = []
    for number in range(16):
        params = proposer.propose(np.random.default_rng([0, number]))
        proposer.begin(number, params)
        proposer.observe(number, 1, float(number % 3))
        proposer.end(number, None, infeasible=False)
        seen.append(params["kind"])
    assert len(set(seen)) >= 15


def test_what_is_reported_between_rungs_is_not_modelled():
    proposer = make()
    proposer.begin(0, {"x": 0.5, "kind": "bad"})
    for epoch in range(1, EPOCHS + 1):
        proposer.observe(0, epoch, 0.1 * epoch)
    assert len(proposer._model) == 3


def test_a_trial_that_ended_by_itself_counts_as_trained_to_the_end():
    proposer = make()
    proposer.begin(0, {"x": 0.5, "kind": "bad"})
    proposer.observe(0, 1, 0.5)
    proposer.end(0, 0.6, infeasible=False)
    assert len(proposer._model) == 2


def test_planned_trials_are_reckoned_with_and_leave_no_trace():
    proposer, other = make(), make()
    run(proposer, 12)
    run(other, 12)
    planned = {12 + n: other.propose(np.random.default_rng(n)) for n in range(3)}
    knowledge = proposer.knowledge
    with proposer.assuming(planned):
        assert all(proposer.was_tried(params) for params in planned.values())
        with_them = proposer.propose(np.random.default_rng(3))
    assert not any(proposer.was_tried(params) for params in planned.values())
    assert proposer.knowledge == knowledge
    assert proposer.propose(np.random.default_rng(7)) == other.propose(np.random.default_rng(7))
    for number, params in planned.items():
        other.begin(number, params)
    assert with_them == other.propose(np.random.default_rng(3))


class Watched:
    """What a proposer asks of its parts while it proposes once; they answer as ever."""

    def __init__(self, proposer: Proposer, monkeypatch):
        self.starting_points, self.believed, self.incumbents, self.means = [], [], [], []
        cube, model = proposer._cube, proposer._model
        neighbours, believe, predict = cube.neighbours, model.believe, model.predict

        def watch_neighbours(rng, row_K, count, step):
            self.starting_points.append(tuple(row_K))
            return neighbours(rng, row_K, count, step)

        def watch_believe(features_ND):
            self.believed += features_ND.tolist()
            believe(features_ND)

        def watch_predict(features_ND):
            mean_N, deviation_N = predict(features_ND)
            self.means.append(mean_N)
            return mean_N, deviation_N

        def watch_improvement(mean_N, deviation_N, best):
            self.incumbents.append(best)
            return expected_improvement(mean_N, deviation_N, best)

        monkeypatch.setattr(cube, "neighbours", watch_neighbours)
        monkeypatch.setattr(model, "believe", watch_believe)
        monkeypatch.setattr(model, "predict", watch_predict)
        monkeypatch.setattr(proposer_module, "expected_improvement", watch_improvement)
        monkeypatch.setattr(proposer_module, "RANDOM_SHARE", 0.0)
        proposer.propose(np.random.default_rng(0))


@pytest.mark.parametrize("metric", ["m", "loss/validation"])
def test_the_model_looks_near_the_best_trials_and_for_more_than_the_best(metric, monkeypatch):
    proposer = make(metric=metric)
    done = run(proposer, 30, sign=-1.0 if metric == "loss/validation" else 1.0)
    watched = Watched(proposer, monkeypatch)
    near = {number for number in range(30) if tuple(proposer._rows[number]) in watched.starting_points}
    expected_of_known = watched.means[0]
    assert near == set(np.argsort(-expected_of_known)[:NUM_BEST].tolist())
    scores = [score(params) for params in done]
    assert np.mean([scores[number] for number in near]) > np.quantile(scores, 0.6)
    assert len(watched.starting_points) == NUM_BEST * len(STEPS)
    assert watched.incumbents == [expected_of_known.max()], "the best that the model expects of a known trial"


def test_trials_that_run_are_taken_as_the_model_expects_them_and_ended_ones_are_not(monkeypatch):
    proposer = make()
    run(proposer, 12)
    proposer.begin(12, {"x": 0.9, "kind": "bad"})
    proposer.begin(13, {"x": 0.1, "kind": "good", "y": 0.2})
    watched = Watched(proposer, monkeypatch)
    assert watched.believed == [proposer._features[number].tolist() for number in (12, 13)]


@pytest.mark.parametrize(("metric", "sign"), [("m", 1.0), ("loss/validation", -1.0)])
def test_an_early_end_counts_with_the_sign_of_its_metric(metric, sign, monkeypatch):
    proposer = make(metric=metric)
    observed = []
    monkeypatch.setattr(proposer._model, "observe", lambda *row: observed.append((row[0], row[1], row[3])))
    proposer.begin(0, {"x": 0.5, "kind": "bad"})
    proposer.observe(0, 1, 0.5)
    proposer.end(0, 0.6, infeasible=False)
    proposer.begin(1, {"x": 0.6, "kind": "bad"})
    proposer.end(1, None, infeasible=True)
    assert observed == [(0, 1, sign * 0.5), (0, EPOCHS, sign * 0.6), (1, EPOCHS, None)]


def test_candidates_come_in_the_order_of_what_they_promise_beside_running_trials(monkeypatch):
    """They are looked at some at a time, and the order is that of looking at all of them."""
    proposer = make()
    done = run(proposer, 30)
    for number, params in enumerate(done[:12], start=30):
        proposer.begin(number, params)
    monkeypatch.setattr(proposer_module, "CHUNK", 7)
    promising = np.stack(list(proposer._promising(np.random.default_rng(4))))
    model, features = proposer._model, proposer._cube.features(promising)
    known = np.stack([proposer._features[number] for number in range(30)])
    gains = expected_improvement(
        model.predict(features)[0], model.believed_deviation(features), float(model.predict(known)[0].max())
    )
    assert len(promising) == proposer_module.NUM_CANDIDATES + NUM_BEST * len(STEPS) * proposer_module.NUM_NEIGHBOURS
    assert gains == pytest.approx(np.sort(gains)[::-1], abs=1e-9)
    alone = expected_improvement(*model.predict(features), float(model.predict(known)[0].max()))
    assert (np.diff(alone) > 1e-9).any(), "running trials change the order"
