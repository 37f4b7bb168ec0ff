"""Batches made by CUDA graphs are those made launch by launch, for any number of clients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from virtual_cuda import counted, virtual_cuda

from cobo_dist.clients.graphs import GraphedFunction
from cobo_dist.tasks.base import DataConfig
from cobo_dist.tasks.examples import ExampleBatches, Examples

CLIENTS = 5


def source(device: str) -> ExampleBatches:
    """Return augmented images of five clients, with dropout."""
    rng = np.random.default_rng(0)
    examples = Examples(
        torch.from_numpy(rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)),
        torch.from_numpy(rng.integers(0, 4, 40)),
        torch.arange(4).repeat(CLIENTS, 1).roll(1, 1),
        torch.float32,
    ).to(torch.device(device))
    own = list(torch.arange(40).tensor_split(CLIENTS))
    return ExampleBatches(
        examples, own, range(CLIENTS), 3, DataConfig(batch_size=4), dropout=(0.2, 16)
    )


CALLS: list[tuple[int, str, list[int] | None]] = [
    (0, "local", None), (0, "midpoint", [1, 3]), (1, "midpoint", [0, 2, 4, 4]), (1, "local", None),
    (2, "midpoint", [2]), (2, "midpoint", []), (3, "local", [0, 1]),
]  # fmt: skip


def test_batches_are_the_same_with_few_launches() -> None:
    plain = source("cpu")
    with virtual_cuda():
        graphed = source("cuda")
        graphed.use_graphs()
        for t, stream, which in CALLS:
            rows = None if which is None else torch.tensor(which, dtype=torch.int64)
            with counted() as counts:
                found = graphed.batch(t, stream, rows)
            expected = plain.batch(t, stream, rows)
            assert len(found) == len(expected) == 3
            for mine, theirs in zip(found, expected, strict=True):
                assert torch.equal(mine.cpu(), theirs)
            if t >= 2 and len(expected[0]):
                assert counts.kernels.total() <= 2, counts.describe()


def waits(one_m: torch.Tensor, numbers_mk: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (one_m * float(numbers_mk.sum()),)


def doubles(one_m: torch.Tensor, numbers_mk: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return (one_m * 2.0, numbers_mk[:, 0] + 1)


@pytest.mark.parametrize("function", [waits, doubles])
def test_what_cannot_be_recorded_is_computed(
    function: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, ...]],
) -> None:
    with virtual_cuda():
        graphed = GraphedFunction(function)
        for count in (2, 3, 0, 1):
            given = torch.arange(float(count)).to("cuda"), torch.ones(count, 2).to("cuda")
            for mine, theirs in zip(graphed(*given), function(*given), strict=True):
                assert torch.equal(mine.cpu(), theirs.cpu())


def test_a_call_without_clients_forgets_no_recording() -> None:
    with virtual_cuda():
        graphed = GraphedFunction(doubles)
        two = torch.arange(2.0).to("cuda"), torch.ones(2, 2)
        none = torch.empty(0).to("cuda"), torch.ones(0, 2)
        first, *_ = graphed(*two)
        graphed(*none)
        again, *_ = graphed(*two)
        assert again.data_ptr() == first.data_ptr()
