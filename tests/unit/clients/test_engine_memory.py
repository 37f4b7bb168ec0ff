"""The vectorised engine on a GPU with little memory: it takes as many models at once as fit."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from virtual_cuda import virtual_cuda

from cobo_dist.clients.buffers import BufferRows
from cobo_dist.clients.engines import OneByOne
from cobo_dist.clients.vectorized import Vectorized

MODELS, EXAMPLES, WIDTH = 12, 64, 32
NO_BUFFERS = BufferRows((), ())


def loss(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(inputs), targets)


def gradients(total_memory: int, held: int = 0) -> tuple[list[list[int]], int, int, int]:
    """Return the sizes of the passes of two rounds, how often memory ran out, and bytes: at first, at most.

    `held`: bytes that something else takes between the two rounds.
    """
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, 128), nn.Tanh(), nn.Linear(128, 10))
    points = 0.1 * torch.randn(MODELS, sum(one.numel() for one in model.parameters()))
    batch = torch.randn(MODELS, EXAMPLES, WIDTH), torch.randint(10, (MODELS, EXAMPLES))
    expected = torch.empty_like(points)
    losses = OneByOne(model, loss).gradients(points, expected, NO_BUFFERS, batch)
    with virtual_cuda(total_memory=total_memory) as memory:
        engine, sizes = Vectorized(model.to("cuda"), loss), []
        there = points.to("cuda")
        found = torch.empty_like(there)
        on_device = tuple(one.to("cuda") for one in batch)
        base, other = memory.allocated, None
        for _ in range(2):
            sizes.append([])
            done = lambda rows, _: sizes[-1].append(rows.stop - rows.start)  # noqa: E731
            again = engine.gradients(there, found, NO_BUFFERS, on_device, done)
            torch.testing.assert_close(found.cpu(), expected)
            torch.testing.assert_close(again.cpu(), losses)
            found.zero_()
            if other is None:
                other = torch.empty(held, dtype=torch.uint8, device="cuda")
        del other
        return sizes, memory.refused, base, memory.peak


def test_all_models_where_memory_suffices() -> None:
    sizes, refused, _, _ = gradients(1 << 37)
    assert sizes == [[MODELS], [MODELS]]
    assert not refused


@pytest.mark.parametrize("share", [0.75, 0.6])
def test_as_many_models_as_fit_without_running_out_of_memory(share: float) -> None:
    _, _, _, peak = gradients(1 << 37)
    sizes, refused, _, _ = gradients(int(share * peak))
    assert not refused, "memory was measured, not tried"
    assert sizes[0] == sizes[1]
    assert sum(sizes[0]) == MODELS
    assert 1 < len(sizes[0]) < MODELS
    assert max(sizes[0]) - min(sizes[0]) <= 1


def test_memory_that_others_take_later_halves_the_passes() -> None:
    _, _, base, peak = gradients(1 << 37)
    sizes, refused, _, _ = gradients(int(peak + 0.4 * (peak - base)), held=int(0.9 * (peak - base)))
    assert sizes[0] == [MODELS]
    assert refused
    assert 1 < len(sizes[1]) < MODELS
