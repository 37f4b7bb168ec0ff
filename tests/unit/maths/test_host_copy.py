"""Copies of tensors on the host: of any views, together, and untouched by what comes after."""

from __future__ import annotations

import torch
from virtual_cuda import counted, on_device, virtual_cuda

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


def test_a_gpu_is_waited_for_once_and_later() -> None:
    expected = views("cpu")
    with virtual_cuda():
        named = views("cuda")
        with counted() as counts:
            copies, wait = host_copies(named)
            named["row"].zero_()
        assert counts.syncs.total() == 0, counts.describe()
        assert counts.to_host.total() == (8 + 5) * 4 + 3 * 8, "the rows that are used, once"
        assert copies["row"].isnan().all(), "not there yet"
        wait()
        for name, copy in copies.items():
            assert not on_device(copy)
            assert torch.equal(copy, expected[name]), name
