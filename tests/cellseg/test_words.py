"""Numbers with their nouns."""

import pytest

from cellseg.words import counted


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 trials"), (1, "1 trial"), (2, "2 trials"), (1200, "1,200 trials"), (1.0, "1 trial")]
)
def test_one_is_singular_and_all_else_plural(count, text):
    assert counted(count, "trial") == text


def test_parts_and_irregular_plurals():
    assert counted(0.5, "GPU") == "0.5 GPUs"
    assert counted(2, "class", plural="classes") == "2 classes"
