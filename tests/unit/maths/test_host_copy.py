"""Copies of tensors on the host: of any views, together, and untouched by what comes after."""

from __future__ import annotations

import pytest
import torch
from virtual_cuda import VirtualCudaError, counted, on_device, virtual_cuda

from cobo_dist.maths.host_copy import host_copies


def views(device: str) -> dict[str, torch.Tensor]:
    """Views of padded rows, of their transposed part, of other memory, of one number and of none."""
    rows = torch.arange(32.0, device=device).view(4, 8)[1:, :5]
    other = torch.arange(3, device=device)
    return {
        "row": rows[1], "part": rows[:2, 1:4].t(), "other": other, "again": rows[1], "number": other[2],
        "expanded": rows[0, :1].expand(3), "nothing": rows[:, :0],
    }  # fmt: skip


def test_copies_equal_the_views_and_stay() -> None:
    named = views("cpu")
    before = {name: one.clone() for name, one in named.items()}
    copies, wait = host_copies(named)
    for one in named.values():
        one.untyped_storage().fill_(0)
    wait()
    assert list(copies) == list(before)
    for name, copy in copies.items():
        assert torch.equal(copy, before[name]), name
        assert copy.stride() == named[name].stride()


@pytest.mark.parametrize("total_memory", [1 << 37, 300], ids=["much memory", "little memory"])
def test_a_gpu_is_waited_for_once_and_later(total_memory: int) -> None:
    """With little memory there is no copy on the device, so the copies stay in the main stream's order."""
    expected = views("cpu")
    with virtual_cuda(total_memory=total_memory) as memory:
        named = views("cuda")
        with counted() as counts:
            copies, wait = host_copies(named)
            named["row"].zero_()
        assert counts.syncs.total() == 0, counts.describe()
        assert counts.to_host.total() == (8 + 5) * 4 + 3 * 8, "the rows that are used, once"
        assert copies["row"].isnan().all(), "not there yet"
        with counted() as waited:
            float(named["row"].sum())  # the main stream
        assert waited.syncs.total() == 1
        behind = total_memory > 300
        assert copies["row"].isnan().all() == behind, "another stream brings them"
        held = memory.allocated
        wait()
        assert (memory.allocated < held) == behind, "the copy on the GPU has gone"
        for name, copy in copies.items():
            assert not on_device(copy)
            assert torch.equal(copy, expected[name]), name


def test_the_virtual_gpu_sees_a_copy_that_is_not_guarded() -> None:
    """Rows that change under a copy of another stream, and a stream that does not wait for the rows."""
    with virtual_cuda():
        rows = torch.ones(4, device="cuda")
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream), pytest.raises(VirtualCudaError, match="does not wait"):
            rows.to("cpu", non_blocking=True)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            copy = rows.to("cpu", non_blocking=True)
        rows.zero_()
        stream.synchronize()
        assert copy.tolist() == [0.0] * 4
