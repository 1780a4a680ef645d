import pickle

import pytest

from cellseg.errors import UserError, raise_all
from cellseg.training.epoch_report import TrainingError


def test_a_user_error_survives_travel_between_processes_with_all_its_problems():
    error = UserError("a: one", "b: two\nlines", "c: three")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is UserError
    assert copy.problems == ("a: one", "b: two\nlines", "c: three")
    assert str(copy) == str(error) == "a: one\nb: two\nlines\nc: three"


def test_a_user_error_is_a_value_error():
    assert isinstance(UserError("a"), ValueError)


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
