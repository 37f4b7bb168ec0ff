"""Rows cut into pieces, and rows taken out of rows."""

from __future__ import annotations

import pytest
import torch

from cobo_dist.maths.flat import empty_rows, pieces, take_rows


@pytest.mark.parametrize("size", [1, 9, 10, 11, 25])
def test_pieces_cover_every_number_once(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Pieces of 10 numbers, with one factor s a row: x <- s x + y has the bits of one pass."""
    monkeypatch.setattr("cobo_dist.maths.flat._PIECE", 10)
    x_cd, y_cd = empty_rows(3, size, dtype=torch.float64), torch.randn(3, size).double()
    x_cd.copy_(torch.randn(3, size))
    s_c1 = torch.tensor([[1.0], [0.3], [-2.0]], dtype=torch.float64)
    expected = x_cd * s_c1 + y_cd
    for x, s, y in pieces(x_cd, s_c1, y_cd):
        x.mul_(s).add_(y)
    assert torch.equal(x_cd, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_taken_in_the_type_they_are_wanted_in(dtype: torch.dtype) -> None:
    rows, index = torch.randn(5, 7), torch.tensor([4, 0, 4])
    out = torch.empty(3, 7, dtype=dtype)
    take_rows(rows, index, out)
    assert torch.equal(out, rows[index].to(dtype))
    take_rows(rows, index[:0], out[:0])
