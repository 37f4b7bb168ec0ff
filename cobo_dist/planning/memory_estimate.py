"""The memory of a rank, item by item: arithmetic over what a dry run counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cobo_dist.clients.batches import bytes_ahead
from cobo_dist.clients.buffers import state_buffers
from cobo_dist.clients.engines import trained
from cobo_dist.clients.optimizer_config import OptimizerConfig
from cobo_dist.clients.optimizers import build_optimizer
from cobo_dist.config import Config
from cobo_dist.maths.flat import Layout, row_bytes
from cobo_dist.tasks.base import Task


@dataclass(frozen=True)
class MemoryItem:
    """One kind of data that a rank keeps, and its bytes."""

    name: str
    bytes: int


@dataclass(frozen=True)
class ModelSize:
    """How many numbers a client's model has, and their types in memory and in messages."""

    size: int  # d, trained
    frozen: int
    buffers: int  # BatchNorm's statistics
    dtype: torch.dtype
    wire: torch.dtype
    names: Layout  # of the trained parameters
    buffer_names: Layout

    @classmethod
    def of(cls, config: Config, task: Task) -> ModelSize:
        """Measure the task's model."""
        model = task.model()
        dtype: torch.dtype = getattr(torch, config.run.dtype)
        names = Layout.of(trained(model))
        floating = ((name, one) for name, one in state_buffers(model) if one.is_floating_point())
        buffer_names = Layout.of(floating)
        return cls(
            names.size,
            sum(one.numel() for one in model.parameters() if not one.requires_grad),
            buffer_names.size,
            dtype,
            dtype if config.comm.dtype == "model" else getattr(torch, config.comm.dtype),
            names,
            buffer_names,
        )

    @property
    def row(self) -> int:
        """Bytes of one model in its row."""
        return row_bytes(self.size, self.dtype)


@dataclass(frozen=True)
class MemoryUse:
    """What a dry run counted on one rank: numbers of models and gradients, and bytes."""

    clients: int
    others: int  # models of no client
    optimizers: int  # of models of each client
    bytes_beside: int  # of rows that the algorithm keeps for each client
    gradients_elsewhere: int  # most gradients at other models than the clients' own, at once
    rows_elsewhere: int  # rows for them, unless they take the place of the models
    midpoint_bytes: int
    mixed_bytes: int
    message_bytes: int
    weight_bytes: int
    weight_row_bytes: int  # one row of W, written out as it travels with a client


def memory_items(use: MemoryUse, model: ModelSize, config: Config, task: Task) -> list[MemoryItem]:
    """Return what a rank keeps, without what depends on the machine: activations, the program itself."""
    count, row = use.clients, model.row
    buffers = row_bytes(model.buffers, model.dtype)
    own, other = (state_rows(config.optimizer, rows, model.dtype) for rows in (count, use.others))
    own *= use.optimizers
    batch = task.training([0], torch.device("cpu")).batch(0, "local")
    example_bytes = sum(tensor[0].nbytes for tensor in batch)
    kept = (config.run.keep != "last") * (row + buffers)
    migrating = int((1 + own) * row) + buffers + kept + use.weight_row_bytes
    streams = config.algorithm.batch_streams * task.random_order
    data_name, data_bytes = task.data_in_memory()
    items: Mapping[str, int] = {
        f"models, {count:,} x {model.size:,} numbers": count * (row + buffers),
        f"optimizer, {own:g} x as many": int(own * count) * row,
        "gradients": count * row,
        "kept by the algorithm for each client": use.bytes_beside * count,
        "models that are kept (run.keep)": count * kept,
        "models, gradients and sums of local steps": 3 * count * row * config.local.several_steps,
        "models of no client, and their optimizer": int((1 + other) * use.others) * row
        + use.others * buffers,
        "midpoints": use.midpoint_bytes,
        "gradients at midpoints and other models": _rows_elsewhere(use, config) * row,
        "sums of models from mixing": use.mixed_bytes,
        "messages, sent and received": use.message_bytes,
        "weights": use.weight_bytes,
        "clients that migrate, at most all": 2
        * count
        * migrating
        * (config.comm.placement == "adaptive"),
        "batches": max(count, use.gradients_elsewhere) * example_bytes,
        "indices of examples, 64 rounds ahead": count
        * streams
        * bytes_ahead(config.data.examples_a_round),
        "base, frozen, once": model.frozen * model.dtype.itemsize,
        data_name: data_bytes,
    }
    return [MemoryItem(name, nbytes) for name, nbytes in items.items() if nbytes]


def _rows_elsewhere(use: MemoryUse, config: Config) -> int:
    """Return the rows for gradients at other models; vectorised, parts of a batch need the models."""
    by_one = config.run.engine == "one_by_one" or config.comm.deterministic
    in_place = by_one or config.data.accumulation == 1
    return use.rows_elsewhere if in_place else use.gradients_elsewhere


def state_rows(config: OptimizerConfig, count: int, dtype: torch.dtype) -> float:
    """Return how many rows an optimizer keeps for each of `count` models."""
    if not count:
        return 0.0
    like_cd = torch.empty(count, 1, dtype=dtype, device="meta")
    memory = build_optimizer(config, like_cd).state().values()
    return sum(len(one) for one in memory if one.is_floating_point()) / count
