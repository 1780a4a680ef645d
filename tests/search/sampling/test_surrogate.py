import numpy as np
import pytest
import torch
from scipy.stats import norm

from search.sampling.surrogate import CurveModel, expected_improvement

EPOCHS = 27


def curve(x: float, epoch: int) -> float:
    """Learning curves whose end is best at x = 0.7 and which rise with the epoch."""
    return 1 - 4 * (x - 0.7) ** 2 - 1 / epoch


def trained(observations, epochs: int = EPOCHS, num_keys: int = 1) -> CurveModel:
    model = CurveModel(np.arange(num_keys), epochs)
    for number, (x, epoch) in enumerate(observations):
        model.observe(number, epoch, np.array([x] * num_keys), curve(x, epoch))
    model.condition()
    return model


GRID = np.linspace(0, 1, 101)[:, None]


def test_the_best_config_is_found_from_a_few_full_trainings():
    model = trained([(x, EPOCHS) for x in np.linspace(0, 1, 9)])
    mean_N, deviation_N = model.predict(GRID)
    assert GRID[mean_N.argmax(), 0] == pytest.approx(0.7, abs=0.03)
    assert (deviation_N > 0).all()


def test_trainings_that_were_stopped_early_teach_about_the_full_length():
    stopped = [(x, 3) for x in np.linspace(0, 1, 12)]
    mean_N, _ = trained([*stopped, (0.2, EPOCHS), (0.4, EPOCHS)]).predict(GRID)
    assert GRID[mean_N.argmax(), 0] == pytest.approx(0.7, abs=0.1)


def test_what_is_known_at_full_length_is_surer_than_what_was_stopped_early():
    model = trained([(0.2, 1), (0.8, EPOCHS), (0.5, 9)])
    _, (early, full, nowhere) = model.predict(np.array([[0.2], [0.8], [0.0]]))
    assert full < early < nowhere


def test_the_order_of_observations_does_not_matter():
    observations = [(0.1, 3, 0.2), (0.5, 9, 0.4), (0.9, 27, 0.3), (0.7, 3, 0.35)]
    predictions = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        model = CurveModel(np.array([0]), EPOCHS)
        for number in order:
            x, epoch, score = observations[number]
            model.observe(number, epoch, np.array([x]), score)
        model.condition()
        predictions.append(model.predict(GRID)[0])
    assert np.array_equal(*predictions)


def test_near_running_trials_nothing_new_is_promised_until_the_next_look():
    model = trained([(0.0, EPOCHS), (0.3, EPOCHS), (1.0, EPOCHS)])
    point = np.array([[0.65]])
    before = model.believed_deviation(point)
    assert before == model.predict(point)[1]
    model.believe(point)
    assert model.believed_deviation(point) < 0.2 * before
    model.condition()
    assert model.believed_deviation(point) == before


def test_beliefs_are_what_observations_of_the_predicted_values_would_be(monkeypatch):
    """They change no mean, and the deviation as a factorisation of all points together says."""
    model = trained([(x, EPOCHS) for x in (0.0, 0.3, 0.6, 1.0)] + [(0.8, 3)])
    believed = np.array([[0.1], [0.45], [0.5], [0.9]])
    model.believe(believed)
    mean_N, deviation_N = model.predict(GRID)[0], model.believed_deviation(GRID)
    x = torch.cat([model._x, torch.as_tensor(believed)])
    t = torch.cat([model._t, torch.ones(4, dtype=torch.double)])
    y = torch.cat([model._y, torch.as_tensor(model.predict(believed)[0])])
    cross = model._cross(x, t, torch.as_tensor(GRID))
    solved = torch.linalg.solve(model._covariance(x, t, model._theta), torch.cat([y[:, None], cross], dim=1))
    assert mean_N == pytest.approx((cross.T @ solved[:, 0]).numpy(), abs=1e-6)
    variance = model._theta[-3:-1].exp().sum() - (cross * solved[:, 1:]).sum(0)
    assert deviation_N**2 == pytest.approx(variance.clamp(min=1e-9).numpy(), abs=1e-6)
    assert (deviation_N <= model.predict(GRID)[1] + 1e-9).all()


def test_an_infeasible_trial_counts_as_the_worst():
    model = trained([(0.0, EPOCHS), (0.4, EPOCHS), (0.6, EPOCHS)])
    hopeful = model.predict(np.array([[0.8]]))[0]
    model.observe(9, EPOCHS, np.array([0.8]), None)
    model.condition()
    assert model.predict(np.array([[0.8]]))[0] < hopeful
    assert model.predict(np.array([[0.8]]))[0] == pytest.approx(model.predict(np.array([[0.0]]))[0], abs=0.1)


def test_equal_scores_are_no_trouble():
    model = CurveModel(np.array([0]), EPOCHS)
    for number in range(3):
        model.observe(number, 1, np.array([number / 2]), 0.0)
    model.condition()
    mean_N, deviation_N = model.predict(GRID)
    assert np.isfinite(mean_N).all() and np.isfinite(deviation_N).all()


def test_only_the_longest_trainings_are_held_when_there_are_many(monkeypatch):
    from search.sampling import surrogate

    monkeypatch.setattr(surrogate, "MAX_POINTS", 3)
    model = CurveModel(np.array([0]), EPOCHS)
    for number, epoch in enumerate([1, 27, 3, 9, 3]):
        model.observe(number, epoch, np.array([0.1 * number]), 0.1 * number)
    assert len(model) == 5
    assert model.condition() == [1, 3, 4]


def test_expected_improvement_is_the_mean_of_what_exceeds_the_best():
    rng = np.random.default_rng(0)
    for mean, deviation, best in [(0.0, 1.0, 0.5), (2.0, 0.3, 1.0), (-3.0, 0.5, 0.0)]:
        draws = norm.rvs(mean, deviation, size=200_000, random_state=rng)
        (value,) = expected_improvement(np.array([mean]), np.array([deviation]), best)
        assert value == pytest.approx(np.maximum(draws - best, 0).mean(), abs=0.005)


def test_the_fit_is_kept_until_the_next_observation_and_forgets_what_was_believed(monkeypatch):
    model = trained([(x, EPOCHS) for x in np.linspace(0, 1, 9)])
    before = model.predict(GRID)
    fits = []

    def most_probable(*data):
        fits.append(data)
        return model._prior

    monkeypatch.setattr(model, "_most_probable", most_probable)
    model.believe(np.array([[0.5]]))
    assert model.condition() == list(range(9))
    np.testing.assert_array_equal(model.predict(GRID), before)
    assert not fits
    model.observe(9, EPOCHS, np.array([0.7]), 1.0)
    assert model.condition() == list(range(10))
    assert len(fits) == 1


def test_the_deviation_is_that_of_the_curve_without_the_noise_of_an_observation(monkeypatch):
    """Many noisy observations of one config tell its mean well, although each of them alone tells little."""
    model = CurveModel(np.array([0]), EPOCHS)
    noise = 1.0
    # length scales of the config and the epoch, variance of the common part and of the epochs' part, noise
    theta = torch.tensor([0.0, 0.0, 0.0, -1.0, np.log(noise)], dtype=torch.double)
    monkeypatch.setattr(model, "_most_probable", lambda *data: theta)
    for number, score in enumerate(np.random.default_rng(0).normal(size=100)):
        model.observe(number, EPOCHS, np.array([0.5]), score)
    model.condition()
    _, (deviation,) = model.predict(np.array([[0.5]]))
    prior = 1 + np.exp(-1)
    assert deviation == pytest.approx((prior * noise / (100 * prior + noise)) ** 0.5, rel=0.01)


def test_a_longer_length_scale_of_the_epoch_makes_epochs_more_alike():
    model = trained([(0.5, 3), (0.5, EPOCHS)])
    x, t = torch.zeros(2, 1, dtype=torch.double), torch.tensor([0.2, 1.0], dtype=torch.double)
    covariances = []
    for logarithm in (-1.0, 0.0, 1.0):
        theta = model._prior.clone()
        theta[-4] = logarithm
        covariances.append(float(model._kernel(x[:1], t[:1], x[1:], t[1:], theta)))
    assert covariances[0] < covariances[1] < covariances[2]
