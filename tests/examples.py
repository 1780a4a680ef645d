"""What property tests share: how many examples they try, and inputs that are broken somewhere.

Examples are the same in every run. The default run tries a few, ``-m slow`` many.
"""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**400), 10**400),
    st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400, -(10**400)]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "..", "\0", "none", "auto", "1e-3", "\ud800"]),
    st.lists(st.one_of(st.none(), st.integers(-3, 3), st.text(max_size=3)), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(-3, 3), max_size=2),
)
"""Values that stand where others were meant, as JSON and YAML can hold them."""


def property_test(few: int, many: int, **strategies: Any) -> Callable[[Callable], Callable]:
    """Make a test of a property: with ``few`` examples in the default run, with ``many`` in the slow one.

    The test is a function of the examples by name, and of fixtures.
    """

    def make(test: Callable) -> Callable:
        def tried(count: int) -> Callable:
            options = settings(
                max_examples=count,
                derandomize=True,
                database=None,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            )
            return options(given(**strategies)(test))

        marks = [pytest.param(few, id="few"), pytest.param(many, id="many", marks=pytest.mark.slow)]

        @pytest.mark.parametrize("examples", marks)
        @pytest.mark.timeout(1200)
        def run(examples: int) -> None:
            tried(examples)()

        run.__name__, run.__doc__ = test.__name__, test.__doc__
        return run

    return make


def places(content: Any, path: tuple = ()) -> Iterator[tuple]:
    """All places in nested JSON values, by the keys that lead there; the whole comes first."""
    yield path
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in inner:
        yield from places(value, (*path, key))


@st.composite
def broken(draw: st.DrawFn, content: Any, most: int = 3) -> Any:
    """The same nested values with one to ``most`` of them replaced, removed or added."""
    content = copy.deepcopy(content)
    for _ in range(draw(st.integers(1, most))):
        path = draw(st.sampled_from(list(places(content))))
        if not path:
            if draw(st.integers(0, 9)) == 0:
                return draw(JUNK)
            continue
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "replace":
            parent[path[-1]] = draw(JUNK)
        elif change == "remove":
            del parent[path[-1]]
        elif isinstance(parent, dict):
            parent[draw(st.text(max_size=5))] = draw(JUNK)
        else:
            parent.append(draw(JUNK))
    return content


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The same bytes with a few changed, or cut off."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        # The beginning says what the rest is.
        last = draw(st.sampled_from([min(64, len(data)), len(data)])) - 1
        place = draw(st.integers(0, max(0, last)))
        change = draw(st.sampled_from(["byte", "byte", "cut", "insert", "zero"]))
        if change == "cut":
            del data[place:]
        elif change == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=4))
        elif change == "zero":
            data[place : place + 4] = bytes(len(data[place : place + 4]))
        elif place < len(data):
            data[place] = draw(st.integers(0, 255))
        if not data:
            break
    return bytes(data)


def as_json(content: Any) -> bytes:
    """JSON as a program may write it, also of numbers that are none."""
    return json.dumps(content).encode("utf-8", "surrogatepass")
