"""Parts of columns, and copies of some rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from virtual_cuda import virtual_cuda

from cobo_dist.maths.alignment import midpoints
from cobo_dist.maths.flat import columns_at_once, empty_rows, some_rows, take_rows, widest

CPU = torch.device("cpu")


@pytest.mark.parametrize("size", [1, 4095, 4096, 4097, 3_000_000])
@pytest.mark.parametrize("count", [0, 1, 3, 10_000])
def test_columns_come_once_each_on_boundaries_and_never_too_many(count: int, size: int) -> None:
    parts = list(columns_at_once(count, size, CPU))
    assert [one.start for one in parts] == [0, *(one.stop for one in parts[:-1])]
    assert parts[-1].stop == size
    assert max(one.stop - one.start for one in parts) == widest(count, size, CPU)
    assert all(one.start % 16 == 0 for one in parts), "like rows"
    assert widest(count, size, CPU) * count <= max(1 << 20, 4096 * count)


def test_rows_without_columns_have_no_parts() -> None:
    """Such as the buffers [c, 0] of models without BatchNorm."""
    assert list(columns_at_once(3, 0, CPU)) == []
    assert widest(3, 0, CPU) == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_copied_in_the_type_of_the_output(dtype: torch.dtype) -> None:
    rows, index = torch.randn(5, 7), torch.tensor([4, 0, 4])
    out = torch.empty(3, 7, dtype=dtype)
    take_rows(rows, index, out)
    assert torch.equal(out, rows[index].to(dtype))
    take_rows(rows, index[:0], out[:0])


@pytest.mark.parametrize("index", [[3], [0, 1, 2], [1, 3, 5], [4, 0], [2, 2], [0, 1, 3]])
def test_some_rows_are_a_view_where_they_are_evenly_spaced(index: list[int]) -> None:
    rows = torch.randn(6, 7)
    taken = some_rows(rows, np.array(index))
    assert torch.equal(taken, rows[index])
    is_view = taken.untyped_storage().data_ptr() == rows.untyped_storage().data_ptr()
    assert is_view == (index in ([3], [0, 1, 2], [1, 3, 5]))


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("wire", [torch.float32, torch.bfloat16])
def test_midpoints(device: str, wire: torch.dtype) -> None:
    """Also where a partner's model arrived in another type."""
    with virtual_cuda():
        x_cd = torch.randn(3, 1001).to(wire).float().to(device)
        z_ed = empty_rows(2, 1001, dtype=x_cd.dtype, device=device)
        arrived = x_cd[2].to(wire)
        found = midpoints([x_cd[0], arrived], [arrived, x_cd[1]], z_ed).cpu()
        x_cd = x_cd.cpu()
    torch.testing.assert_close(found, (x_cd[:2] + x_cd[2]) / 2)
