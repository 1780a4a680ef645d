import pickle

import pytest

from cellseg.errors import Problem, UserError, raise_all
from cellseg.training.epoch_report import TrainingError


def test_a_user_error_survives_travel_between_processes_with_all_its_problems():
    error = UserError("a: one", "b: two\nlines", "c: three")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is UserError
    assert copy.problems == ("a: one", "b: two\nlines", "c: three")
    assert str(copy) == str(error) == "a: one\nb: two\nlines\nc: three"


def test_a_user_error_is_a_value_error():
    assert isinstance(UserError("a"), ValueError)


def test_a_problem_reads_as_place_law_evidence_and_remedy():
    problem = Problem("optim.lr", "must be greater than 0", "-1", "Raise it.")
    assert str(problem) == "optim.lr: must be greater than 0, but got -1. Raise it."
    assert str(problem.within("a.yaml")) == "a.yaml: optim.lr: must be greater than 0, but got -1. Raise it."
    assert str(Problem("", "must be a number", "'x'")) == "must be a number, but got 'x'."
    assert str(Problem("", "must be a number", "'x'").within("optim.lr")) == "optim.lr: must be a number, but got 'x'."


def test_a_user_error_holds_the_lines_of_its_problems():
    error = UserError(Problem("a", "must be 1", "2"), "b: must be 2, but got 1.")
    assert error.problems == ("a: must be 1, but got 2.", "b: must be 2, but got 1.")
    assert pickle.loads(pickle.dumps(error)).problems == error.problems


def test_a_user_error_without_a_problem_is_our_bug():
    with pytest.raises(AssertionError):
        UserError()


def test_raise_all_raises_once_with_everything():
    raise_all([])
    raise_all(iter(()))
    with pytest.raises(UserError) as raised:
        raise_all(iter(["a", "b"]))
    assert raised.value.problems == ("a", "b")


def test_a_training_error_survives_travel_between_processes():
    copy = pickle.loads(pickle.dumps(TrainingError("non-finite", "loss_mask in epoch 3")))
    assert (copy.reason, copy.detail) == ("non-finite", "loss_mask in epoch 3")
    assert str(copy) == "non-finite: loss_mask in epoch 3"
