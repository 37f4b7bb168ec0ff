"""The cheapest exact way to send one rank's part of sum_k w_ik x_k to another rank's clients.

For the block B = W[receiver's clients, sender's clients] the sender can send
  rows   the models with a non-zero column in B,
  sums   the partial sums B X, one for each distinct non-zero row of B (clients of one cluster soon have
         equal rows, and at W = 1 all rows are equal), or
  total  the sum of all its models, and the models whose column in B is not all ones.
All three are exact; `plan_block` counts the models that each would send and takes the least. Receiver and
sender make the same plan from the same block, so nothing about the plan is sent.

Shapes: r receivers, s senders, k models that are sent, d parameters, m stored entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cobo_dist.maths.blocks import Block, columns_of, rows_of
from cobo_dist.maths.flat import to_device, upload
from cobo_dist.maths.weights import Ints

_DENSE = 32
"""A matrix product is faster than sums of single rows where at least one in this many weights is stored."""
_MAX_NUMBERS = 1 << 20
"""Numbers of a dense factor or of copied models that a product has in memory at a time."""
_MAX_FACTOR_ON_GPU = 1 << 24
"""Numbers of the largest block that a GPU always multiplies as a matrix: 64 MB of float32."""


@dataclass(frozen=True)
class BlockPlan:
    """How one block B [r, s] travels.

    Kinds `rows` and `total`: the sender's models number `send` travel, and the receiver multiplies them by
    its factor [r, k]. In a `total`, the sum of all models comes first and covers the models that do not
    travel. Kind `sums`: the sender multiplies its models by its factor [k, s], and the receiver's row
    `receivers[i]` takes sum number `send[i]`.
    """

    kind: str  # "rows", "sums" or "total"
    send: Ints
    receivers: Ints
    block: Block
    taken: Ints  # the columns of the block that are in the factor or, for sums, the rows

    @property
    def models(self) -> int:
        """The number k of models that are sent."""
        return len(self.taken) + (self.kind == "total")

    @cached_property
    def product(self) -> Product:
        """The multiplication by the factor, which only one of the two sides needs."""
        take = rows_of if self.kind == "sums" else columns_of
        return Product(take(self.block, self.taken))


def plan_rows(block: Block) -> BlockPlan:
    """Plan to send every model with a non-zero column in the block."""
    return _crossing("rows", block, np.flatnonzero(block.counts()[1]))


def plan_total(block: Block) -> BlockPlan:
    """Plan to send the sum of all models, and every model whose column is not all ones."""
    return _crossing("total", block, np.flatnonzero(block.counts()[3] < block.shape[0]))


def plan_sums(block: Block) -> BlockPlan:
    """Plan to send the partial sum of every distinct non-zero row of the block."""
    return _sums(block, block.row_classes(), block.counts()[0])


def plan_block(block: Block) -> BlockPlan:
    """Return the plan for a block that sends the fewest models; on a tie, the simpler one."""
    nonzero_r, nonzero_s, _, ones_s = block.counts()
    rows, rest = np.flatnonzero(nonzero_s), np.flatnonzero(ones_s < block.shape[0])
    least = min(len(rows), 1 + len(rest))
    if least > 1:  # no block other than 0 needs fewer than one model
        class_r = block.row_classes()
        if len(np.unique(class_r[nonzero_r > 0])) < least:
            return _sums(block, class_r, nonzero_r)
    if len(rows) <= 1 + len(rest):
        return _crossing("rows", block, rows)
    return _crossing("total", block, rest)


def _crossing(kind: str, block: Block, send: Ints) -> BlockPlan:
    return BlockPlan(kind, send, np.arange(block.shape[0]), block, send)


def _sums(block: Block, class_r: Ints, nonzero_r: Ints) -> BlockPlan:
    receivers = np.flatnonzero(nonzero_r)
    _, first, send = np.unique(class_r[receivers], return_index=True, return_inverse=True)
    return BlockPlan("sums", send.reshape(-1), receivers, block, receivers[first])


class Product:
    """Adds B X to rows, for a block B [r, k]: the sum of each group once, stored entries one by one."""

    def __init__(self, block: Block) -> None:
        """Prepare the product by a block."""
        self.shape, self.level = block.shape, block.level
        none: Ints = np.empty(0, dtype=np.int64)
        shared = np.intersect1d(block.row_groups, block.column_groups) if block.level else none
        self.groups = len(shared)
        self._rows = _numbered(shared, block.row_groups)
        self._columns = _numbered(shared, block.column_groups)
        # float64, so that the difference of two weights is rounded once, to the type of the models.
        self._at, self._more = (block.rows, block.columns), block.values.astype(np.float64)
        self._more -= block.base
        if (np.diff(block.rows) < 0).any():
            order = np.argsort(block.rows, kind="stable")
            self._at, self._more = (block.rows[order], block.columns[order]), self._more[order]
        self._on_gpu: Tensor | None = None  # the block as a matrix, once a GPU has multiplied by it

    @property
    def is_written_out(self) -> bool:
        """Whether enough weights are stored that matrix products are used."""
        size = self.shape[0] * self.shape[1]
        return size > 0 and bool(is_written_out(len(self._more), size))

    def add(self, x_kd: Tensor, into_rd: Tensor, *, first: bool = False) -> None:
        """Add sum_k b_rk x_k to every row of `into_rd` [r, d]; `first`: write it there instead."""
        if x_kd.is_cuda and 0 < self.shape[0] * self.shape[1] <= _MAX_FACTOR_ON_GPU:
            if self._on_gpu is None:
                self._on_gpu = upload(torch.from_numpy(self._dense(0, self.shape[0])), x_kd)
            with _full_precision():
                into_rd.addmm_(self._on_gpu, x_kd, beta=0.0 if first else 1.0)
            return
        if first:
            into_rd.zero_()
        if self.is_written_out:
            self._add_dense(x_kd, into_rd)
            return
        if self.groups:
            self._add_groups(x_kd, into_rd)
        if len(self._more):
            self._add_entries(x_kd, into_rd)

    def _add_dense(self, x_kd: Tensor, into_rd: Tensor) -> None:
        """Multiply by dense pieces of B, some rows at a time."""
        r, k = self.shape
        step = max(1, _MAX_NUMBERS // k)
        for begin in range(0, r, step):
            end = min(r, begin + step)
            factor = upload(torch.from_numpy(self._dense(begin, end)), x_kd)
            with _full_precision():
                into_rd[begin:end].addmm_(factor, x_kd)

    def _dense(self, begin: int, end: int) -> NDArray[np.float64]:
        """Return rows `begin` to `end` of B as a matrix."""
        rows, columns = self._at
        same = self._rows[begin:end, None] == self._columns[None, :]
        factor = np.where(same & (self._columns >= 0), self.level, 0.0)
        first, last = np.searchsorted(rows, (begin, end))
        factor[rows[first:last] - begin, columns[first:last]] += self._more[first:last]
        return factor

    def _add_groups(self, x_kd: Tensor, into_rd: Tensor) -> None:
        if self.groups == 1 and (self._columns == 0).all():
            sums_gd = x_kd.sum(dim=0, keepdim=True)
        else:
            members = np.flatnonzero(self._columns >= 0)
            sums_gd = x_kd.new_zeros(self.groups, x_kd.shape[1])
            for piece in _pieces(members, x_kd.shape[1]):
                groups = _index(self._columns[piece], x_kd)
                sums_gd.index_add_(0, groups, x_kd[_index(piece, x_kd)])
        if self.groups == 1 and (self._rows == 0).all():
            into_rd.add_(sums_gd, alpha=self.level)
            return
        for piece in _pieces(np.flatnonzero(self._rows >= 0), x_kd.shape[1]):
            taken = sums_gd[_index(self._rows[piece], x_kd)]
            into_rd.index_add_(0, _index(piece, x_kd), taken, alpha=self.level)

    def _add_entries(self, x_kd: Tensor, into_rd: Tensor) -> None:
        """Add the terms of one receiver after the other, so that its row stays in the cache."""
        rows, columns = self._at
        index = _index(columns, x_kd)
        more = upload(torch.from_numpy(self._more), x_kd)
        step = max(1, _MAX_NUMBERS // max(1, x_kd.shape[1]))
        starts = np.flatnonzero(np.diff(rows, prepend=-1))
        ends = np.append(starts[1:], len(rows))
        for begin, end in zip(starts.tolist(), ends.tolist(), strict=True):
            into_d = into_rd[rows[begin]]
            for at in range(begin, end, step):
                last = min(end, at + step)
                terms = x_kd.index_select(0, index[at:last])
                into_d.addmv_(terms.t(), more[at:last])


@contextmanager
def _full_precision() -> Iterator[None]:
    """Multiply on a GPU without TF32, which would round the models to 10 bits (`run.tf32`)."""
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before


def is_written_out(listed: int | Ints, size: int | Ints) -> NDArray[np.bool_] | bool:
    """Return whether a block of `size` weights, of which `listed` are stored, is multiplied as a matrix."""
    return listed * _DENSE >= size


def pack(plan: BlockPlan, x_sd: Tensor, out_kd: Tensor) -> None:
    """Write what the sender of the models `x_sd` sends under `plan` into `out_kd`, k = plan.models."""
    if plan.kind == "sums":
        plan.product.add(x_sd, out_kd, first=True)
        return
    head = int(plan.kind == "total")
    if head:
        torch.sum(x_sd, dim=0, out=out_kd[0])
    if len(plan.send):
        torch.index_select(x_sd, 0, _index(plan.send, x_sd), out=out_kd[head:])


def unpack(plan: BlockPlan, payload_kd: Tensor, into_rd: Tensor, *, first: bool = False) -> None:
    """Add the sender's part of sum_k w_ik x_k, from what it sent, to the receiver's rows `into_rd`.

    `first`: write it there instead. On a GPU that saves a launch.
    """
    # Every receiver takes a sum: all the same one, or each the next.
    each_one = plan.kind == "sums" and len(plan.receivers) == len(into_rd)
    each_one &= plan.models == 1 or np.array_equal(plan.send, np.arange(len(into_rd)))
    writes_all = each_one or (plan.kind == "rows" and len(plan.send) > 0)
    if first and not (into_rd.is_cuda and writes_all):
        into_rd.zero_()
        first = False
    if each_one:
        into_rd.copy_(payload_kd) if first else into_rd.add_(payload_kd)
        return
    if plan.kind == "sums":
        if into_rd.is_cuda:
            receivers, taken = _index(plan.receivers, into_rd), _index(plan.send, into_rd)
            into_rd.index_add_(0, receivers, payload_kd.index_select(0, taken))
            return
        for receiver, number in zip(plan.receivers.tolist(), plan.send.tolist(), strict=True):
            into_rd[receiver].add_(payload_kd[number])
        return
    if plan.kind == "total":
        into_rd.add_(payload_kd[0] - payload_kd[1:].sum(dim=0))
        payload_kd = payload_kd[1:]
    if len(plan.send):
        plan.product.add(payload_kd, into_rd, first=first)


def ordered_sum(
    weights_rn: Iterable[NDArray[np.floating]],
    model: Callable[[int], Tensor],
    into_rd: Tensor,
    term_d: Tensor,
) -> None:
    """Write sum_k w_ik x_k into each row of `into_rd`, adding in client order k = 0, 1, ..., n-1.

    `model(k)` returns x_k [d]. Each product and each sum is rounded by itself, so the result is bitwise the
    same for any placement. `term_d` is scratch.
    """
    into_rd.zero_()
    for row, weights_n in enumerate(weights_rn):
        for k in np.flatnonzero(weights_n):
            torch.mul(model(int(k)), float(weights_n[k]), out=term_d)
            into_rd[row].add_(term_d)


def _numbered(shared: NDArray[np.signedinteger], groups: Ints) -> Ints:
    """Return the index of each group among the shared ones; -1 where it is none of them."""
    if not len(shared):
        return np.full(len(groups), -1)
    place = np.minimum(np.searchsorted(shared, groups), len(shared) - 1)
    return np.where(shared[place] == groups, place, -1)


def _pieces(numbers: Ints, size: int) -> Iterable[Ints]:
    """Cut the numbers of rows of `size` into pieces, so that a copy of a piece's rows is small."""
    step = max(1, _MAX_NUMBERS // max(1, size))
    return (numbers[at : at + step] for at in range(0, len(numbers), step))


def _index(numbers: Ints, like: Tensor) -> Tensor:
    return to_device(np.ascontiguousarray(numbers), like.device)
