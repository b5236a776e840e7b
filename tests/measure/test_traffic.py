"""Bytes of eager operations: reads, writes, views, in-place operations, the backward pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperworks.measure.traffic import bytes_touched


@given(st.integers(0, 40), st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
def test_an_elementwise_operation_reads_its_inputs_and_writes_its_output(n: int, dtype: torch.dtype) -> None:
    x, y = torch.ones(n, dtype=dtype), torch.ones(n, dtype=dtype)
    found = bytes_touched(lambda: x + y)
    assert (found.read, found.written) == (2 * n * x.element_size(), n * x.element_size())
    assert found.total == found.read + found.written


def test_one_tensor_twice_is_read_once_and_views_move_nothing() -> None:
    x = torch.ones(4, 6)
    assert bytes_touched(lambda: x * x).read == 96
    assert bytes_touched(lambda: x.t()[1:].expand(2, 5, 4)).total == 0
    assert bytes_touched(lambda: x[:, :1].expand(4, 6) + 1).read == 16, "the distinct elements"


def test_in_place_reads_and_writes_and_out_only_writes() -> None:
    x, y = torch.ones(10), torch.zeros(10)
    assert (bytes_touched(lambda: x.add_(1)).read, bytes_touched(lambda: x.add_(1)).written) == (40, 40)
    found = bytes_touched(lambda: torch.add(x, x, out=y))
    assert (found.read, found.written) == (40, 40)


def test_separate_operations_move_more_than_one_and_the_rows_add_up() -> None:
    x = torch.randn(100)
    found = bytes_touched(lambda: x * torch.sigmoid(x))
    assert found.total == (100 + 100) * 4 + (200 + 100) * 4
    assert dict(found.rows) == {"mul": 1200, "sigmoid": 800}
    assert [name for name, _ in found.rows] == ["mul", "sigmoid"], "the largest first"


def test_the_backward_pass_counts() -> None:
    x = torch.randn(100, requires_grad=True)
    forward = bytes_touched(lambda: torch.sigmoid(x))
    both = bytes_touched(lambda: torch.autograd.grad(torch.sigmoid(x), x, torch.ones(100)))
    assert both.total >= forward.total + 3 * 400


def test_an_error_inside_comes_out_and_leaves_no_mode() -> None:
    with pytest.raises(RuntimeError):
        bytes_touched(lambda: torch.ones(2) @ torch.ones(3))
    assert torch.ones(2).sum() == 2
