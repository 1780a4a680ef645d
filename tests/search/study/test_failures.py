"""When failures have one cause, and when a search gives up."""

import re
import traceback

import pytest

from search.study.failures import Cause, FailureWatch, headline


def traceback_of(raise_it) -> str:
    try:
        raise_it()
    except Exception:
        return traceback.format_exc(limit=-6)
    raise AssertionError("nothing was raised")


def sizes(ours: int, theirs: int):
    def raise_it() -> None:
        raise RuntimeError(
            f"The size of tensor a ({ours}) must match the size of tensor b ({theirs})\n"
            f"Look at 0x7f{ours:010x} for advice,\n  which is long."
        )

    return raise_it


def missing(path: str):
    def raise_it() -> None:
        raise FileNotFoundError(2, "No such file or directory", path)

    return raise_it


def chained() -> None:
    try:
        raise KeyError("x")
    except KeyError as error:
        raise ValueError("the same for every trial") from error


@pytest.mark.parametrize(
    ("ending", "first", "second"),
    [
        ("bug", traceback_of(sizes(64, 32)), traceback_of(sizes(80, 16))),
        ("bug", traceback_of(missing("/results/s/t0001/last")), traceback_of(missing("/results/s/t0012/last"))),
        ("bug", traceback_of(chained), "Traceback\nValueError: the same for every trial"),
        ("lost", "its process died 3 times: 10.0.0.1:6379 is gone", "its process died 3 times: 10.0.0.72:6379 is gone"),
        ("lost", "actor 5f0c7a2b9e1d44aa died, pid 81", "actor 0a1b2c3d4e5f6a7b died, pid 4242"),
        ("invalid", "/r/my cells/t0001/best: must be a checkpoint", "/r/my cells/t0002/best: must be a checkpoint"),
    ],
)
def test_texts_of_one_cause_that_differ_by_chance_have_one_cause(ending, first, second):
    assert headline(first) != headline(second) or first != second
    assert Cause.of(ending, first) == Cause.of(ending, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (("bug", "KeyError: 'x'"), ("bug", "KeyError: 'y'")),
        (("bug", "KeyError: 'x'"), ("bug", "ValueError: 'x'")),
        (("bug", "KeyError: 'x'"), ("lost", "KeyError: 'x'")),
        (("bug", "AssertionError"), ("bug", "AssertionError: too small")),
        (
            ("invalid", "data.crop: must fit the images, but got 512."),
            ("invalid", "data.crop: must fit the images, but got 640."),
        ),
    ],
)
def test_other_endings_exceptions_words_and_settings_are_other_causes(first, second):
    assert Cause.of(*first) != Cause.of(*second)


def test_a_cause_has_the_type_of_the_exception():
    assert Cause.of("bug", traceback_of(chained)) == Cause("bug", "ValueError", "the same for every trial")
    assert Cause.of("invalid", "optim.lr: must be small").exception == ""


def test_the_headline_of_a_traceback_names_the_exception_not_the_advice():
    assert headline(traceback_of(sizes(64, 32))).startswith("RuntimeError: The size of tensor a (64)")
    assert headline("one\ntwo\n") == "two"
    assert headline("") == ""


def test_three_tensors_of_other_sizes_end_the_search_with_the_last_text():
    watch = FailureWatch(failures_count=False)
    for size in (1, 2, 3):
        assert watch.reason is None
        watch.end("bug", traceback_of(sizes(size, 32)), failed=True)
    assert re.fullmatch(r"3 trials in a row ended as 'bug': RuntimeError: The size of tensor a \(3\).*", watch.reason)
