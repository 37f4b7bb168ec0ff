"""What a rank holds, part by part: arithmetic over counts, whoever counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from cobo_dist.algorithms.cobo import CoBoConfig
from cobo_dist.clients.batches import bytes_ahead
from cobo_dist.clients.engines import state_buffers, trained
from cobo_dist.clients.optimizers import OptimizerConfig, build_optimizer
from cobo_dist.config import Config
from cobo_dist.maths.flat import row_bytes
from cobo_dist.tasks.base import Task
from cobo_dist.tasks.language.task import Language
from cobo_dist.tasks.quadratic import Quadratic
from cobo_dist.tasks.supervised import Classification


@dataclass(frozen=True)
class Part:
    """One kind of thing that a rank holds, and its bytes."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Model:
    """How large a client's model is, in numbers, and in what type it lies and travels."""

    size: int  # d, trained
    frozen: int
    buffers: int  # BatchNorm's statistics
    dtype: torch.dtype
    wire: torch.dtype

    @classmethod
    def of(cls, config: Config, task: Task) -> Model:
        """Measure the task's model."""
        model = task.model()
        dtype: torch.dtype = getattr(torch, config.run.dtype)
        floating = [one for _, one in state_buffers(model) if one.is_floating_point()]
        return cls(
            sum(one.numel() for _, one in trained(model)),
            sum(one.numel() for one in model.parameters() if not one.requires_grad),
            sum(one.numel() for one in floating),
            dtype,
            dtype if config.comm.dtype == "model" else getattr(torch, config.comm.dtype),
        )

    @property
    def row(self) -> int:
        """Bytes of one model in its row."""
        return row_bytes(self.size, self.dtype)


@dataclass(frozen=True)
class Held:
    """What one rank has, counted: clients, models of no client, bytes of the exchange's buffers by kind."""

    clients: int
    others: int
    taken: int  # most gradients at foreign points at once
    apart: int  # rows for them, where they do not take the place of the points
    midpoints: int
    mixed: int
    messages: int
    weights: int
    weights_row: int  # one row of W, written out as it travels with a client


def parts_of(held: Held, model: Model, config: Config, task: Task) -> list[Part]:
    """Return all that a rank holds, but what depends on the machine: activations, the program itself."""
    count, row = held.clients, model.row
    buffers = row_bytes(model.buffers, model.dtype)
    own, other = (state_rows(config.optimizer, rows, model.dtype) for rows in (count, held.others))
    batch = task.training([0], torch.device("cpu")).batch(0, "local")
    example_bytes = sum(tensor[0].nbytes for tensor in batch)
    parcel = int((1 + own) * row) + buffers + held.weights_row
    parts: Mapping[str, int] = {
        f"models, {count:,} x {model.size:,} numbers": count * (row + buffers),
        f"optimizer, {own:g} x as many": int(own * count) * row,
        "gradients": count * row,
        "models of no client, and their optimizer": int((1 + other) * held.others) * row
        + held.others * buffers,
        "midpoints": held.midpoints,
        "gradients there and at other foreign models": _apart(held, config) * row,
        "what mixing delivers": held.mixed,
        "messages, sent and received": held.messages,
        "weights": held.weights,
        "clients on the move, at most all": 2
        * count
        * parcel
        * (config.comm.placement == "adaptive"),
        "batches": max(count, held.taken) * example_bytes,
        "which examples, 64 rounds ahead": count * _bytes_ahead(config, task),
        "base, frozen, once": model.frozen * model.dtype.itemsize,
        _data_name(task): _data_bytes(task),
    }
    return [Part(name, nbytes) for name, nbytes in parts.items() if nbytes]


def _apart(held: Held, config: Config) -> int:
    """Return the rows for gradients at foreign points; vectorised, parts of a batch need the points."""
    by_one = config.run.engine == "one_by_one" or config.comm.deterministic
    return held.apart if by_one or config.data.accumulation == 1 else held.taken


def state_rows(config: OptimizerConfig, count: int, dtype: torch.dtype) -> float:
    """Return how many rows an optimizer keeps for each of `count` models."""
    if not count:
        return 0.0
    like_cd = torch.empty(count, 1, dtype=dtype, device="meta")
    held = build_optimizer(config, like_cd).state().values()
    return sum(len(one) for one in held if one.is_floating_point()) / count


def _bytes_ahead(config: Config, task: Task) -> int:
    """Return what one client's numbers of examples take, in each stream of batches that is read."""
    if not isinstance(task, (Classification, Language)):
        return 0
    algorithm = config.algorithm
    fresh = isinstance(algorithm, CoBoConfig) and algorithm.midpoint_data == "fresh"
    return (1 + fresh) * bytes_ahead(config.data.examples_a_round)


def _data_name(task: Task) -> str:
    return "tokens of all clients, files mapped" if isinstance(task, Language) else "data, once"


def _data_bytes(task: Task) -> int:
    """Return the bytes of the examples, which every rank has once."""
    if isinstance(task, Classification):
        examples = task.examples
        return sum(one.nbytes for one in (examples.inputs, examples.targets, examples.labels_of))
    if isinstance(task, Language):
        return sum(stream.tokens.nbytes for stream in task.streams)
    if isinstance(task, Quadratic):
        return 2 * int(task.centers_nd.nbytes)  # as it was read, and in run.dtype
    return 0
