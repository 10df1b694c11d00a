"""Scalars in a table on their device."""

import pytest
import torch

from dit_accel.accel.attention.conditions import Conditions
from dit_accel.accel.attention.scalars import Scalars


@pytest.mark.parametrize("rows", [0, 1, 16, 17, 100])
def test_rows_of_any_length_come_back_in_order(rows):
    scalars = Scalars(3)
    expected = [[float(row), row + 0.5, -1.0][: 1 + row % 3] for row in range(rows)]
    places = [scalars.add([torch.tensor(value) for value in row]) for row in expected]
    assert places == list(range(rows))
    assert scalars.read() == expected


def test_a_row_that_found_no_memory_is_none(monkeypatch):
    scalars = Scalars(1)
    scalars.add([torch.tensor(1.0)])

    def stack(*args):
        raise torch.OutOfMemoryError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "stack", stack)
        with pytest.raises(torch.OutOfMemoryError):
            scalars.add([torch.tensor(2.0)])
    assert scalars.add([torch.tensor(3.0)]) == 1
    assert scalars.read() == [[1.0], [3.0]]


def test_conditions_are_answered_by_one_read(monkeypatch):
    conditions, reads = Conditions(), []
    for key in range(40):
        conditions.ask(key, torch.tensor(key % 3 == 0))
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: reads.append(tensor.shape) or tolist(tensor))
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: pytest.fail("one by one"))
    assert conditions.read() == list(range(0, 40, 3))
    assert reads == [(40, 1)]
    assert conditions.read() == []
