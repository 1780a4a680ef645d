import pytest
import torch

from cellseg.device import pick_device
from cellseg.errors import UserError


def test_the_default_is_a_gpu_where_there_is_one_and_else_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device() == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device() == torch.device("cpu")


def test_a_device_may_be_named():
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "", "cpu:x"])
def test_a_device_that_is_not_there_is_one_line(name):
    with pytest.raises(UserError, match="--device: must be a device of this machine, but got '") as raised:
        pick_device(name)
    assert "\n" not in str(raised.value)
