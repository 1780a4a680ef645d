"""Which parameters a narrow leaderboard shows."""

import json

import numpy as np

from search.storage.tables import TrialRow
from search.views.columns import cut, fitting_keys, short_names, telling_keys

KEYS = ["constant", "noise", "peak", "kind", "rare"]


def rows(count: int, metric: str = "segm/AP50") -> list[TrialRow]:
    """Trials whose metric has its optimum in the middle of ``peak``, and depends a little on ``kind``."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        params = {"constant": 1, "noise": rng.random(), "peak": rng.random(), "kind": str(rng.choice(["a", "b"]))}
        value = 1 - (params["peak"] - 0.5) ** 2 * 3 + 0.15 * (params["kind"] == "a")
        if number % 10 == 0:
            params["rare"] = rng.random()
        found.append(
            TrialRow(number=number, state="COMPLETE", params=json.dumps(params), config="{}", seed=0, metric=value)
        )
    return found


def test_what_explains_the_rank_comes_first_also_with_an_optimum_in_the_middle():
    assert telling_keys(rows(200), KEYS, "segm/AP50")[0] == "peak"


def test_what_does_not_vary_among_the_best_comes_last():
    order = telling_keys(rows(200), KEYS, "segm/AP50")
    assert order.index("constant") > order.index("noise")
    assert order.index("rare") > order.index("noise"), "few of the best have it"


def test_with_few_trials_the_order_of_the_space_decides_among_what_varies():
    assert telling_keys(rows(5), KEYS, "segm/AP50")[:3] == ["noise", "peak", "kind"]
    assert telling_keys([], KEYS, "segm/AP50") == KEYS


def test_ten_thousand_trials_and_many_keys_take_a_moment():
    import time

    many = rows(10_000)
    began = time.perf_counter()
    telling_keys(many, KEYS * 12, "segm/AP50")
    assert time.perf_counter() - began < 2


def test_keys_are_taken_in_their_order_as_long_as_they_fit():
    widths = {"a": 4, "b": 10, "c": 2}
    assert fitting_keys("abc", widths, 10) == ["a", "c"]
    assert fitting_keys("abc", widths, 5) == ["c"]
    assert fitting_keys("abc", widths, None) == ["a", "b", "c"]
    assert fitting_keys("abc", widths, 0) == []


def test_names_are_short_but_not_ambiguous():
    assert short_names(["optim.lr", "model.norm", "head.norm"]) == {
        "optim.lr": "lr",
        "model.norm": "model.norm",
        "head.norm": "head.norm",
    }
    assert cut("abcdef", 4) == "abc…" and cut("abcd", 4) == "abcd"
