import numpy as np
import pytest

from search.sampling.encoding import Cube
from search.space import Choices, Domain, Range, Space

DOMAINS: dict[str, Domain] = {
    "kind": Choices(choices=("a", "b", None)),
    "width": Range(low=8, high=64, log=True, integer=True),
    "steps": Range(low=0.1, high=0.9, step=0.2),
    "rate": Range(low=1e-5, high=1e-1, log=True, when={"kind": ("a",)}),
    "depth": Range(low=1, high=3, integer=True, when={"kind": ("a", "b")}),
    "deep": Range(low=0.0, high=1.0, when={"depth": (2, 3)}),
}


SPACE = Space(metric="m", trials=1, epochs=9, domains=DOMAINS)


@pytest.fixture
def cube() -> Cube:
    return Cube(DOMAINS)


def test_every_row_decodes_to_params_that_the_space_could_have_sampled(cube):
    rng = np.random.default_rng(0)
    for row_K in cube.random(rng, 300):
        params = cube.decode(row_K)
        assert list(params) == [key for key in DOMAINS if SPACE.is_active(key, params)]
        assert all(DOMAINS[key].contains(value) for key, value in params.items())


def test_random_rows_reach_both_ends_and_every_choice_about_equally_often(cube):
    drawn = [cube.decode(row_K) for row_K in cube.random(np.random.default_rng(0), 3000)]
    for value in ("a", "b", None):
        assert sum(params["kind"] == value for params in drawn) == pytest.approx(1000, rel=0.15)
    for step in (0.1, 0.9):
        assert sum(params["steps"] == pytest.approx(step) for params in drawn) == pytest.approx(600, rel=0.2)


def test_params_survive_a_round_trip(cube):
    rng = np.random.default_rng(1)
    for _ in range(200):
        params = SPACE.sample(rng)
        back = cube.decode(cube.encode(params, rng))
        assert back.keys() == params.keys()
        assert all(
            back[key] == (pytest.approx(value) if isinstance(value, float) else value) for key, value in params.items()
        )


def test_features_see_what_is_active_and_nothing_else(cube):
    rng = np.random.default_rng(2)
    for _ in range(50):
        params = SPACE.sample(rng)
        rows_NK = np.stack([cube.encode(params, rng) for _ in range(3)])  # inactive keys differ
        features_ND = cube.features(rows_NK)
        assert features_ND.shape == (3, len(cube.key_of_feature)) == (3, 3 + 5)
        assert np.allclose(features_ND, features_ND[0])
        assert (features_ND >= 0).all() and (features_ND <= 1).all()


def test_two_choices_are_as_far_apart_as_the_ends_of_a_range(cube):
    rows_NK = np.full((4, len(DOMAINS)), 0.99)
    rows_NK[1, 0] = 0.5  # kind: b
    rows_NK[2, 2], rows_NK[3, 2] = 0.0, 1.0
    features_ND = cube.features(rows_NK)
    of_kind = cube.key_of_feature == 0
    assert np.linalg.norm((features_ND[0] - features_ND[1])[of_kind]) == pytest.approx(1)
    of_steps = cube.key_of_feature == 2
    assert abs(features_ND[3] - features_ND[2])[of_steps] == pytest.approx(0.8)  # a fifth of the axis for each value


def test_neighbours_are_near_and_now_and_then_choose_anew(cube):
    rng = np.random.default_rng(3)
    row_K = np.full(len(DOMAINS), 0.5)
    near_NK = cube.neighbours(rng, row_K, 2000, step=0.05)
    assert (near_NK >= 0).all() and (near_NK <= 1).all()
    numbers_N = near_NK[:, 1]
    assert (numbers_N == 0.5).mean() == pytest.approx(0.5, abs=0.05)
    assert numbers_N[numbers_N != 0.5].std() == pytest.approx(0.05, rel=0.1)
    assert (near_NK[:, 0] != 0.5).mean() == pytest.approx(0.2, abs=0.04)


def test_a_condition_on_a_key_that_is_not_sampled_looks_at_its_default():
    domains = {
        "optim.momentum": Range(low=0.1, high=0.9, when={"optim.optimizer": ("sgd",)}),
        "optim.gamma": Range(low=0.1, high=0.9, when={"optim.schedule": ("warmup-cosine",)}),
    }
    cube = Cube(domains)
    row_K = np.array([0.25, 0.25])
    assert list(cube.decode(row_K)) == ["optim.gamma"]
    assert cube.features(row_K[None]).tolist() == [[0.5, 0.25]]
