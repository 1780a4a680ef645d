import numpy as np
import pytest

from search.sampling.encoding import Cube
from search.sampling.proposer import NUM_RANDOM, Proposer
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
