"""What a domain contains and draws."""

import json

import numpy as np
import pytest
from spacefiles import HEAD, parse

from search.space import Choices, Range


def test_numbers_follow_the_type_of_the_field():
    space = parse(
        HEAD
        + "space:\n  optim.clip_norm: {low: 1, high: 10}\n  data.crop: {low: 64, high: 256}\n"
        + "  optim.weight_decay: {low: 0, high: 1, type: int}\n"
    )
    assert [(domain.integer, type(domain.low)) for domain in space.domains.values()] == [
        (False, float),
        (True, int),
        (True, int),
    ]


@pytest.mark.parametrize(
    "domain",
    [
        Range(low=1, high=100, log=True, integer=True),
        Range(low=0.1, high=0.7, step=0.1),
        Range(low=2, high=5, integer=True),
        Range(low=0.5, high=2.0),
        Choices(choices=(True, 1.5, "a", None)),
    ],
    ids=str,
)
def test_a_domain_draws_what_it_and_optuna_contain_and_survives_its_file_form(domain):
    rng = np.random.default_rng(0)
    distribution = domain.distribution()
    drawn = [domain.sample(rng) for _ in range(200)]
    assert all(domain.contains(value) for value in drawn)
    assert all(distribution._contains(distribution.to_internal_repr(value)) for value in drawn)
    assert json.loads(json.dumps(domain.to_json())) == domain.to_json()


@pytest.mark.parametrize(
    ("domain", "value"),
    [
        (Range(low=0, high=3, integer=True), True),
        (Range(low=0, high=3, integer=True), 1.5),
        (Range(low=0.0, high=3.0), 3.1),
        (Range(low=0.0, high=3.0), "1"),
        (Range(low=0.0, high=3.0), None),
        (Range(low=0.0, high=3.0), float("nan")),
        (Range(low=0.0, high=3.0, step=0.5), 0.7),
        (Choices(choices=(1, 2)), True),
    ],
)
def test_a_domain_contains_no_strangers(domain, value):
    assert not domain.contains(value)
